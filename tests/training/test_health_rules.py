"""Every rule finds the run it is meant for, and none finds anything in runs that went well."""

from math import nan

import pytest

from components.training.health_rules import RULES, History

# what runs of the built-in world logged: model=tiny, seed 0, default settings; of RLOO 128 updates
HEALTHY: dict[str, History] = {
    "ppo": {
        "max_new_tokens": [24.0],
        "rollout/score": [0.162, 0.407, 0.564, 0.733, 0.802, 1.03],
        "rollout/score_std": [1.0, 0.915, 0.992, 0.944, 0.934, 0.812],
        "rollout/kl": [0.0, 0.0947, 0.346, 0.691, 0.77, 0.835],
        "rollout/kl_stderr": [0.0, 0.0458, 0.0678, 0.0783, 0.114, 0.0847],
        "rollout/entropy": [0.911, 0.864, 0.803, 0.766, 0.719, 0.693],
        "rollout/length": [7.99, 7.88, 7.2, 6.89, 7.21, 7.24],
        "rollout/finished": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        "rollout/gold": [0.179, 0.374, 0.597, 0.719, 0.739, 0.873],
        "rollout/explained_variance": [-0.096, 0.134, 0.202, 0.174, 0.277, 0.312],
        "train/clip_fraction": [0.194, 0.0, 0.171, 0.0303, 0.0, 0.103, 0.0223, 0.0862],
        "train/approx_kl": [0.0187, 0.000436, 0.0301, 0.00352, 3.83e-05, 0.0153, 0.00184, 0.0153],
        "first/ratio_max": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    },
    "rloo": {
        "max_new_tokens": [24.0],
        "rollout/score": [0.203, 0.31, 0.415, 0.645, 0.682, 0.865, 1.02, 1.06, 0.968, 1.2, 1.02, 1.01],
        "rollout/score_std": [1.0, 0.901, 0.898, 0.9, 0.883, 0.874, 0.757, 0.777, 0.791, 0.678, 0.756, 0.761],
        "rollout/kl": [0.0, 0.0784, 0.151, 0.371, 0.524, 1.1, 1.18, 1.22, 0.939, 1.57, 1.46, 1.45],
        "rollout/kl_stderr": [0.0, 0.0328, 0.0523, 0.0564, 0.0887, 0.127, 0.144, 0.126, 0.128, 0.143, 0.16, 0.167],
        "rollout/entropy": [0.925, 0.89, 0.845, 0.834, 0.826, 0.738, 0.685, 0.646, 0.636, 0.612, 0.597, 0.615],
        "rollout/length": [7.91, 7.63, 7.63, 7.16, 7.27, 7.07, 7.2, 7.4, 7.55, 7.51, 7.41, 7.35],
        "rollout/finished": [1.0, 1.0, 0.992, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        "rollout/gold": [0.209, 0.346, 0.466, 0.663, 0.662, 0.865, 0.862, 1.0, 0.878, 0.954, 0.924, 0.946],
        "rollout/equal_groups": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0156, 0.0, 0.0156, 0.0, 0.0312, 0.0312],
        "train/clip_fraction": [0.0, 0.0625, 0.156, 0.125, 0.0, 0.0, 0.0938, 0.125, 0.0, 0.0, 0.0, 0.0],
        "train/approx_kl": [0.000114, 0.000871, 0.00123, 0.00176, 1.83e-05, 0.000247, 0.00329, 0.00416],
    },
    "dpo": {
        "train/accuracy": [0.777, 0.814, 0.876, 0.824, 0.894, 0.922, 0.897, 0.905, 0.932, 0.843, 0.862, 0.879],
        "train/margin": [0.0705, 0.305, 0.423, 0.428, 0.731, 0.805, 0.853, 0.932, 0.928, 0.86, 0.882, 0.849],
        "train/chosen_reward": [-0.00598, -0.222, -0.31, -0.389, -0.388, -0.445, -0.49, -0.637, -0.46, -0.719, -0.593],
        "train/rejected_reward": [-0.0765, -0.528, -0.733, -0.818, -1.12, -1.25, -1.34, -1.57, -1.39, -1.58, -1.47],
        "val/loss": [0.444],
        "val/accuracy": [0.857],
    },
    "rm": {
        "train/accuracy": [0.674, 0.749, 0.649, 0.692, 0.767, 0.933, 0.929, 0.94, 0.983, 0.972, 0.971, 0.96],
        "train/margin": [0.255, 0.441, 0.284, 0.371, 0.541, 4.22, 4.92, 6.47, 9.09, 8.88, 10.7, 8.67],
        "val/loss": [0.77, 1.25],
        "val/accuracy": [0.671, 0.696],
        "val/ece": [0.124, 0.197],
        "val/score_length_correlation": [-0.259, -0.261],
        "val/longer_wins": [0.412, 0.412],
    },
    "sft": {"train/accuracy": [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4], "val/loss": [0.979, 0.918, 0.889]},
}

RISING = [0.1 * n for n in range(20)]
# the rule, the history it is meant for, and what in it makes the difference: with that value it is silent
BAD: dict[str, tuple[History, str, list[float]]] = {
    "negative KL": (
        {"rollout/kl": [0.0, -0.11, -0.11], "rollout/kl_stderr": [0.0, 0.03, 0.03]},
        "rollout/kl_stderr",
        [0.0, 0.03, 0.04],
    ),
    "ratio off": ({"first/ratio_max": [1.0, 1.0, 1.2]}, "first/ratio_max", [1.0, 1.0, 1.04]),
    "much clipped": ({"train/clip_fraction": [0.1, 0.4, 0.5, 0.4]}, "train/clip_fraction", [0.4, 0.5, 0.2]),
    "large update": ({"train/approx_kl": [0.01, 0.01, 0.11]}, "train/approx_kl", [0.01, 0.01, 0.09]),
    "scores saturated": (
        {"rollout/score_std": [1.0, 0.5, 0.09, 0.05, 0.03]},
        "rollout/score_std",
        [1.0, 0.5, 0.2, 0.05, 0.03],
    ),
    "lengths": (
        {"rollout/length": [8, 8, 9, 11, 14, 17], "max_new_tokens": [24]},
        "rollout/length",
        [8, 8, 9, 11, 14, 15],
    ),
    "no end": ({"rollout/finished": [0.1, 0.2, 0.3, 0.4, 0.4]}, "rollout/finished", [0.1, 0.2, 0.3, 0.4, 0.6]),
    "entropy collapse": (
        {"rollout/entropy": [0.9, 0.4, 0.29, 0.2], "progress": [0.2]},
        "progress",
        [0.3],
    ),
    "equal groups": ({"rollout/equal_groups": [0.1, 0.5, 0.6, 0.7]}, "rollout/equal_groups", [0.7, 0.4, 0.5, 0.5]),
    "useless critic": (
        {"rollout/explained_variance": [-0.2] * 10},
        "rollout/explained_variance",
        [-0.2] * 5 + [0.1] + [-0.2] * 4,
    ),
    "over-optimization": (
        {"rollout/score": RISING, "rollout/gold": [0.1 * n for n in range(10)] + [0.9 - 0.1 * n for n in range(10)]},
        "rollout/gold",
        [0.1 * n for n in range(10)] + [0.9] * 10,
    ),
    "far from the reference": (
        {"rollout/kl": [8.0, 9.0, 10.0, 11.0, 12.0], "rollout/score": RISING},
        "rollout/gold",
        [0.5] * 20,
    ),
    "both rewards fall": (
        {"train/chosen_reward": [0.0, -1.0, -1.2, -1.4, -1.6], "train/rejected_reward": [0.0, -1.2, -1.5, -1.8, -2.0]},
        "train/rejected_reward",
        [-2.0, -2.0, -3.0, -4.0, -5.0],
    ),
    "nothing learned": (
        {"train/accuracy": [0.48, 0.53] * 5, "train/margin": [0.01] * 10, "progress": [0.5]},
        "progress",
        [0.2],
    ),
    "below the length baseline": (
        {"val/accuracy": [0.58], "val/longer_wins": [0.4], "progress": [1.0]},
        "val/accuracy",
        [0.62],
    ),
    "badly calibrated": ({"val/ece": [0.1, 0.3]}, "val/ece", [0.3, 0.2]),
    "learned length": ({"val/score_length_correlation": [-0.8]}, "val/score_length_correlation", [-0.6]),
    "overfitting": ({"val/loss": [2.0, 1.0, 1.1, 1.2, 1.3]}, "val/loss", [1.0, 1.1, 1.05, 1.2, 1.3]),
}


def found(history: History) -> dict[str, str]:
    """The findings of all rules that find something."""
    said = {name: rule.check(history) for name, rule in RULES.items()}
    return {name: text for name, text in said.items() if text is not None}


def test_every_rule_is_tried():
    assert BAD.keys() == RULES.keys()


@pytest.mark.parametrize("name", BAD)
def test_a_rule_finds_the_run_it_is_meant_for_and_no_other_rule_does(name):
    history, _, _ = BAD[name]
    assert list(found(history)) == [name]


@pytest.mark.parametrize("name", BAD)
def test_a_rule_is_silent_once_its_cause_is_removed(name):
    history, decisive, harmless = BAD[name]
    assert found(history | {decisive: harmless}) == {}


@pytest.mark.parametrize("run", HEALTHY)
def test_nothing_is_found_at_any_time_of_a_run_that_went_well(run):
    history = HEALTHY[run]
    longest = max(map(len, history.values()))
    for n in range(1, longest + 1):
        so_far = {name: values if name == "max_new_tokens" else values[:n] for name, values in history.items()}
        assert found(so_far | {"progress": [n / longest]}) == {}


def test_nothing_is_found_if_nothing_or_nothing_finite_was_logged():
    names = {name for history, *_ in BAD.values() for name in history}
    assert found({}) == {}
    assert found({name: [nan] * 20 for name in names}) == {}


@pytest.mark.parametrize("name", [*BAD, *HEALTHY])
def test_no_rule_needs_a_metric_that_the_stage_may_not_have(name):
    """As distillation, whose responses the built-in world judges but no reward scores."""
    history = BAD[name][0] if name in BAD else HEALTHY[name]
    for missing in history:
        found({other: values * 3 for other, values in history.items() if other != missing})
        found({missing: history[missing] * 3})


def test_responses_that_fill_their_limit_and_end_less_often_are_found_however_slowly_they_grew():
    history = {"rollout/length": [20.0] * 6, "rollout/finished": [0.95, 0.9, 0.8, 0.7], "max_new_tokens": [24.0]}
    assert found(history)["lengths"] == (
        "responses are 20 tokens long, with a limit of 24, and the share that ends by itself fell from 95% to 70%"
    )
    assert found(history | {"rollout/finished": [0.95, 0.9, 0.85, 0.8]}) == {}


def test_a_reward_model_is_measured_against_the_better_of_two_rules_of_length():
    look, known = RULES["below the length baseline"].check, {"val/accuracy": [0.55], "progress": [1.0]}
    told = {longer: look(known | {"val/longer_wins": [longer]}) for longer in (0.6, 0.4, 0.5)}
    assert '"the longer answer wins" alone, 60%' in told[0.6]
    assert '"the shorter answer wins" alone, 60%' in told[0.4]
    assert told[0.5] is None


def test_gold_that_only_fluctuates_is_not_over_optimization():
    """A noise of ±0.1 around a plateau; the highest of 16 means of five lies above the last by chance."""
    wavering = [0.9 + 0.1 * (-1) ** (n * n // 3) for n in range(40)]
    assert found({"rollout/score": [0.1 * n for n in range(50)], "rollout/gold": RISING[:10] + wavering}) == {}


def test_an_answer_names_the_numbers():
    assert found(BAD["negative KL"][0])["negative KL"].startswith("the KL to the reference is -0.110 ± 0.030 nats")


def test_every_cause_and_remedy_is_a_sentence():
    for rule in RULES.values():
        assert rule.cause.endswith(".") and rule.remedy.endswith(".") and rule.remedy[0].isupper()
