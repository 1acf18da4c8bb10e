"""The report card says whether each stage worked."""

import io

from rich.console import Console

from components.evaluation.report import learning, output, plots

CARDS = {
    "tokenizer": {"metrics": {"bytes_per_token": 3.71, "seconds": 2.0}},
    "pretrain": {
        "metrics": {"steps": 500, "val/loss": 0.56},
        "exported": {"step": 480, "of": 500, "why": "the lowest val/loss"},
        "learning": {"verdict": "learned", "metric": "val/loss", "before": 8.2, "after": 0.56, "found": ""},
    },
    "sft": {
        "metrics": {"steps": 18},
        "exported": {"step": 18, "of": 18, "why": "the lowest val/loss"},
        "learning": {
            "verdict": "still falling",
            "metric": "val/loss",
            "before": 9.1,
            "after": 5.06,
            "found": "val/loss went from 5.900 to 5.060 in the last 33% of training",
        },
    },
    "rm": {"metrics": {"steps": 60}},
}
ROWS = [
    ["tokenizer", "made", "bytes per token", "–", "3.71", "–"],
    ["pretrain", "learned", "val/loss", "8.20", "0.56", "480 of 500"],
    ["sft", "still falling", "val/loss", "9.10", "5.06", "18 of 18"],
    ["rm", "not measured", "–", "–", "–", "60"],
]


def test_each_row_gives_a_stages_result_and_its_metric():
    table = learning.learning_table({"learning": learning.learned(CARDS)})
    assert table.rows == ROWS
    assert table.note.endswith("sft: val/loss went from 5.900 to 5.060 in the last 33% of training.")


def test_a_report_from_before_these_cards_has_no_table():
    assert learning.learning_table({}) is None


def test_the_terminal_and_the_page_show_the_table(results, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "PICTURES", {})
    screen = io.StringIO()
    told = results | {"learning": learning.learned(CARDS)}
    output.write(told, tmp_path, console=Console(file=screen, width=100))
    assert "Did each step work?" in screen.getvalue() and "still falling" in screen.getvalue()
    page = (tmp_path / "report.md").read_text()
    assert "| sft | still falling | val/loss | 9.10 | 5.06 | 18 of 18 |" in page
