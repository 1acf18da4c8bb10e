"""The table and picture of a scaling law."""

from rich.console import Console

from components.tasks import law_card

RESULTS = {
    "law": {"E": 1.0, "A": 10.0, "B": 100.0, "alpha": 0.5, "beta": 0.5},
    "intervals": dict.fromkeys(("E", "A", "B", "alpha", "beta"), [0.5, 2.0]),
    "error": 0.021,
    "runs": {"a": {"parameters": 1e4, "tokens": 1e4, "loss": 2.0, "content": "x"}},
    "size": {"parameters": 4e4, "tokens": 4e4},
    "predicted": {"loss": 1.55, "interval": [1.6, 1.7]},
}


def test_every_run_has_its_loss_by_the_law_and_the_error_of_that():
    """1 + 10/100 + 100/100 = 2.1, 5% above 2.0."""
    constants, runs = law_card.tables(RESULTS)
    assert constants.rows[0] == ["E", "1", "0.5 to 2"] and "fitted runs: 2.1%" in constants.note
    assert runs.rows == [["10k", "10k", "2.000", "2.100", "+5.0%"], ["40k", "40k", "–", "1.550", "–"]]
    measured = law_card.tables(RESULTS | {"measured": {"loss": 1.6, "error": 1.55 / 1.6 - 1}})[1]
    assert measured.rows[1] == ["40k", "40k", "1.600", "1.550", "−3.1%"]


def test_a_prediction_outside_of_its_interval_is_drawn(tmp_path):
    law_card.write(RESULTS, tmp_path, Console())
    assert f"({law_card.PICTURE})" in (tmp_path / law_card.PAGE).read_text()
    assert (tmp_path / law_card.PICTURE).stat().st_size > 10_000
    assert (tmp_path / law_card.DATA).exists()
