"""An examination's figures against limits: verdicts, the table, the words of a refusal."""

import io
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from components.evaluation.gate import FIGURES, PASSED, REFUSED, UNKNOWN, WARNED, refusal, show, verdicts
from components.evaluation.probes import PROBES

FOUND = {"accuracy": 0.7, "accuracy_low": 0.6, "ece": 0.2, "over_length": -0.05, "gold_accuracy_low": None}
EXAMINATION = {
    "ranking": {"pairs": 1415, "prompts": 12, "accuracy": 0.7, "accuracy_ci": [0.6, 0.8]},
    "gold": None,
    "probes": {"empty": {"accuracy": 0.25, "accuracy_ci": [0.1, 0.4], "pairs": 40}},
    "categories": {"length": {"matched lengths": {"accuracy": 0.5, "accuracy_ci": [0.3, 0.7], "pairs": 1200}}},
    "figures": {**FOUND, "probe_empty": 0.25},
}


def judged(refuse, warn=None):
    return {one.key: one.verdict for one in verdicts(FOUND, refuse, warn or {})}


@pytest.mark.parametrize(
    ("limit", "passes"),
    [
        ({"min_accuracy_low": 0.6}, True),
        ({"min_accuracy_low": 0.61}, False),
        ({"max_ece": 0.2}, True),
        ({"max_ece": 0.19}, False),
        ({"max_accuracy_low": 0.59}, False),
        ({"min_over_length": -0.1}, True),
    ],
)
def test_a_figure_at_its_limit_passes_and_beyond_it_does_not(limit, passes):
    assert list(judged(limit).values()) == [PASSED if passes else REFUSED]
    assert list(judged({}, limit).values()) == [PASSED if passes else WARNED]


def test_a_figure_with_two_limits_has_the_worse_verdict():
    expected = {(0.3, 0.25): PASSED, (0.3, 0.15): WARNED, (0.18, 0.15): REFUSED, (0.1, 0.3): REFUSED}
    for (refuse, warn), verdict in expected.items():
        assert judged({"max_ece": refuse}, {"max_ece": warn}) == {"max_ece": verdict}


def test_a_limit_of_null_is_none_and_what_was_not_measured_is_said():
    assert judged({"max_ece": None, "min_accuracy_low": 0.5}) == {"min_accuracy_low": PASSED}
    assert judged({"min_gold_accuracy_low": 0.5, "min_probe_long": 0.5}) == {
        "min_gold_accuracy_low": UNKNOWN,
        "min_probe_long": UNKNOWN,
    }


@pytest.mark.parametrize("key", ["min_acuracy", "accuracy", "atleast_ece", "minece"])
def test_a_limit_on_what_is_no_figure_names_the_figures(key):
    with pytest.raises(ValueError, match=rf"'{key}' is no limit.*accuracy_low.*probe_refusal"):
        judged({key: 0.5})


def test_the_limits_of_the_configuration_are_on_figures():
    limits = yaml.safe_load((Path(__file__).resolve().parents[2] / "conf/gate/default.yaml").read_text())
    names = {one.name for one in verdicts({}, limits["refuse"], limits["warn"])}
    assert {f"probe_{name}" for name in PROBES} <= names <= set(FIGURES)


def test_a_refusal_names_each_figure_what_was_got_the_limit_and_what_to_do():
    failed = verdicts(FOUND, {"min_accuracy_low": 0.65, "max_ece": 0.15, "min_over_length": 0.0}, {})
    told = refusal("logs/x/rm/export", EXAMINATION, failed, {"Train it again": "python train.py stage=rm"})
    assert told.splitlines() == [
        "the reward model at logs/x/rm/export failed its examination (1,415 held-out pairs on 12 prompts):",
        "  accuracy, low end: got 60 %, limit at least 65 %",
        "  calibration error (ECE): got 0.20, limit at most 0.15",
        "  accuracy beyond that of length alone: got −5 %, limit at least 0 %",
        "Train it again: python train.py stage=rm",
    ]


def test_the_table_shows_value_limit_and_verdict_and_then_the_categories():
    console = Console(width=100, record=True, file=io.StringIO())
    show(EXAMINATION, verdicts(EXAMINATION["figures"], {"min_accuracy_low": 0.65}, {"min_probe_empty": 0.5}), console)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "accuracy 70 % [60, 80]" in lines
    assert "accuracy, low end 60 % ≥ 65 % failed" in lines
    assert "accuracy beyond that of length alone −5 %" in lines
    assert "best answer above: an empty one 25 % [10, 40] ≥ 50 % warning" in lines
    assert "by length: matched lengths 50 % [30, 70] 1,200 pairs" in lines
    assert "1,415 held-out pairs on 12 prompts. [95 % interval over prompts]" in lines
