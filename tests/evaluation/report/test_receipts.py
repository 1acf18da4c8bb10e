"""The report's table of what was predicted."""

from components.evaluation.report.receipts import receipts_table


def test_a_row_per_stage_with_the_difference_in_percent():
    receipt = {
        "seconds": {"predicted": 100.0, "actual": 125.0},
        "flops": {"predicted": 2e12, "actual": 1.9e12},
        "memory": {"predicted": None, "actual": 1.5e9},
    }
    table = receipts_table({"receipts": {"sft": receipt, "rm": {}}})
    assert table.rows == [
        ["sft", "100", "125 (+25%)", "2.00e+12", "1.90e+12 (−5%)", "–", "1.50"],
        ["rm", *["–"] * 6],
    ]


def test_without_receipts_there_is_no_table():
    assert receipts_table({}) is None and receipts_table({"receipts": {}}) is None
