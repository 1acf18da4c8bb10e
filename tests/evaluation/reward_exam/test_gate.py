"""An examination's metrics against limits: verdicts, the table, the refusal message."""

import io
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from components.evaluation.measure.intervals import share_interval
from components.evaluation.reward_exam.gate import (
    METRICS,
    PASSED,
    REFUSED,
    REMEDIES,
    UNKNOWN,
    WARNED,
    Support,
    refusal,
    remedies,
    show,
    support,
    verdicts,
)
from components.evaluation.reward_exam.probes import PROBES

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
def test_a_metric_at_its_limit_passes_and_beyond_it_does_not(limit, passes):
    assert list(judged(limit).values()) == [PASSED if passes else REFUSED]
    assert list(judged({}, limit).values()) == [PASSED if passes else WARNED]


def test_a_metric_with_two_limits_has_the_worse_verdict():
    expected = {(0.3, 0.25): PASSED, (0.3, 0.15): WARNED, (0.18, 0.15): REFUSED, (0.1, 0.3): REFUSED}
    for (refuse, warn), verdict in expected.items():
        assert judged({"max_ece": refuse}, {"max_ece": warn}) == {"max_ece": verdict}


def test_null_means_no_limit_and_what_was_not_measured_is_reported():
    assert judged({"max_ece": None, "min_accuracy_low": 0.5}) == {"min_accuracy_low": PASSED}
    assert judged({"min_gold_accuracy_low": 0.5, "min_probe_long": 0.5}) == {
        "min_gold_accuracy_low": UNKNOWN,
        "min_probe_long": UNKNOWN,
    }


def resting(right, pairs, **more):
    """A share of pairs, one per prompt, with Wilson's interval."""
    low, high = share_interval(torch.tensor([1.0] * right + [0.0] * (pairs - right)), range(pairs))
    return Support(right / pairs, low, high, pairs, pairs)


@pytest.mark.parametrize(
    ("right", "pairs", "verdict"),
    [
        (2, 2, UNKNOWN),  # [34, 100]
        (0, 2, UNKNOWN),  # [0, 66]
        (4, 4, UNKNOWN),  # [51, 100]: even perfect, it cannot pass
        (5, 5, PASSED),  # [57, 100]
        (8, 10, UNKNOWN),  # [49, 94]
        (0, 10, REFUSED),  # [0, 28]: entirely below the limit
        (10, 20, REFUSED),  # [30, 70]
        (265, 500, REFUSED),  # [48.6, 57]: many pairs, and hardly better than chance
    ],
)
def test_a_low_end_beyond_its_limit_is_not_a_failure_if_the_interval_is_too_wide(right, pairs, verdict):
    rests = resting(right, pairs)
    [judged] = verdicts({"accuracy_low": rests.low}, {"min_accuracy_low": 0.52}, {}, {"accuracy_low": rests})
    assert judged.verdict == verdict


@pytest.mark.parametrize(
    ("right", "pairs", "verdict"),
    [(0, 2, UNKNOWN), (2, 2, UNKNOWN), (4, 4, PASSED), (0, 4, WARNED), (3, 8, UNKNOWN), (7, 20, WARNED)],
)
def test_a_share_whose_interval_reaches_across_the_limit_and_far_is_not_measured(right, pairs, verdict):
    rests = resting(right, pairs)
    [judged] = verdicts({"probe_empty": rests.share}, {}, {"min_probe_empty": 0.5}, {"probe_empty": rests})
    assert judged.verdict == verdict


@pytest.mark.parametrize("got", [0.1, 0.45])
def test_a_calibration_error_is_known_no_better_than_the_accuracy(got):
    for pairs, expected in ((2, {UNKNOWN}), (30, {PASSED, REFUSED})):
        [judged] = verdicts({"ece": got}, {"max_ece": 0.35}, {}, {"ece": resting(pairs, pairs)})
        assert judged.verdict in expected


def test_too_few_pairs_are_reported_with_the_number_needed():
    rests = resting(2, 2)
    [judged] = verdicts({"accuracy_low": rests.low}, {"min_accuracy_low": 0.52}, {}, {"accuracy_low": rests})
    assert str(judged) == (
        "accuracy, low end: got 34.2%, limit at least 52%: 2 pairs on 2 prompts are too few to tell, "
        "about 16 prompts are needed"
    )


def test_no_number_of_pairs_is_enough_for_a_limit_that_nothing_reaches():
    rests = resting(2, 2)
    [judged] = verdicts({"accuracy_low": rests.low}, {"min_accuracy_low": 1.0}, {}, {"accuracy_low": rests})
    assert judged.verdict == REFUSED


@pytest.mark.parametrize("key", ["min_acuracy", "accuracy", "atleast_ece", "minece"])
def test_a_limit_on_an_unknown_metric_names_the_metrics(key):
    with pytest.raises(ValueError, match=rf"'{key}' is not a limit.*accuracy_low.*probe_refusal"):
        judged({key: 0.5})


def test_the_configured_limits_are_on_known_metrics():
    limits = yaml.safe_load((Path(__file__).resolve().parents[3] / "conf/gate/default.yaml").read_text())
    names = {one.name for one in verdicts({}, limits["refuse"], limits["warn"])}
    assert {f"probe_{name}" for name in PROBES} <= names <= set(METRICS)


def test_every_metric_beyond_a_limit_has_a_remedy_and_a_shared_one_is_given_once():
    assert REMEDIES.keys() == METRICS.keys()
    metrics = {"ece": 0.4, "probe_empty": 0.1, "probe_echo": 0.2, "probe_long": 0.9, "length_matched": None}
    limits = {f"min_probe_{name}": 0.5 for name in ("empty", "echo", "long")}
    calibration, unseen = remedies(verdicts(metrics, {}, {"max_ece": 0.25, "min_length_matched": 0.5, **limits}))
    assert calibration == REMEDIES["ece"] and unseen == REMEDIES["probe_empty"]
    assert "trainer.max_epochs" in calibration and "stage.beta" in unseen


def test_a_refusal_names_each_metric_its_value_the_limit_and_what_to_do():
    failed = verdicts(FOUND, {"min_accuracy_low": 0.65, "max_ece": 0.15, "min_over_length": 0.0}, {})
    told = refusal("logs/x/rm/export", EXAMINATION, failed, {"Train it again": "python train.py stage=rm"})
    assert told.splitlines() == [
        "the reward model at logs/x/rm/export failed its examination (1,415 held-out pairs on 12 prompts):",
        "  accuracy, low end: got 60%, limit at least 65%",
        "  calibration error (ECE): got 0.20, limit at most 0.15",
        "  accuracy beyond length alone: got −5%, limit at least 0%",
        "Train it again: python train.py stage=rm",
    ]


def test_the_table_shows_value_limit_and_verdict_and_then_the_categories():
    console = Console(width=100, record=True, file=io.StringIO())
    show(EXAMINATION, verdicts(EXAMINATION["figures"], {"min_accuracy_low": 0.65}, {"min_probe_empty": 0.5}), console)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "accuracy 70% [60, 80]" in lines
    assert "accuracy, low end 60% ≥ 65% failed" in lines
    assert "accuracy beyond length alone −5%" in lines
    assert "best answer above: an empty answer 25% [10, 40] ≥ 50% warning" in lines
    assert "by length: matched lengths 50% [30, 70] 1,200 pairs" in lines
    assert "1,415 held-out pairs on 12 prompts. [95% interval over prompts]" in lines
    assert f"• {REMEDIES['accuracy_low']}" in lines and any(line.startswith("• best answer above …:") for line in lines)


def test_the_table_has_intervals_beside_what_length_does_not_explain():
    intervals = {"over_longer_ci": [-0.1, 0.02], "accuracy_length_matched_ci": [0.3, 0.7]}
    figures = {"over_length": -0.05, "length_matched": 0.5}
    for longer, shown in ((0.75, "−5% [−10, 2]"), (0.25, "−5%")):  # the interval is that of "the longer wins"
        console = Console(width=100, record=True, file=io.StringIO())
        ranking = {**EXAMINATION["ranking"], **intervals, "longer_wins": longer}
        show({**EXAMINATION, "ranking": ranking, "figures": figures}, [], console)
        lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
        assert f"accuracy beyond length alone {shown}" in lines
        assert "accuracy at matched lengths 50% [30, 70]" in lines


def test_the_caption_says_what_has_too_few_pairs():
    ranking = {"pairs": 2, "prompts": 2, "accuracy": 1.0, "accuracy_ci": [0.34, 1.0]}
    examination = {"ranking": ranking, "probes": {}, "categories": {}, "figures": {"accuracy_low": 0.34}}
    console = Console(width=100, record=True, file=io.StringIO())
    limits = {"min_accuracy_low": 0.52}
    show(examination, verdicts(examination["figures"], limits, {}, support(examination)), console)
    text = " ".join(console.export_text().split())
    assert "accuracy, low end 34% ≥ 52% not measured" in text
    assert "not measured: 2 pairs on 2 prompts are too few to tell, about 16 prompts are needed" in text
