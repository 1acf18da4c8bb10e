"""The conclusions of a report follow its metrics in every direction."""

import pytest

from components.evaluation.report import conclusions, outcome
from components.evaluation.report.conclusions import CONCLUSIONS
from components.evaluation.report.curves import Curve
from components.evaluation.report.plots import PICTURES


def test_every_picture_has_its_conclusion():
    assert CONCLUSIONS.keys() == PICTURES.keys()


@pytest.mark.parametrize(
    ("interval", "told"),
    [
        ([0.82, 0.9], "ppo wins against sft: 60% [82, 90]"),
        ([0.4, 0.6], "ppo did not win: it is not distinguishable from sft, 60% [40, 60]"),
        ([0.2, 0.4], "ppo did not win, it loses to sft: only 60% [20, 40]"),
    ],
)
def test_the_interval_decides_who_won(interval, told):
    assert outcome.won("ppo", {"win_rate": 0.6, "win_rate_ci": interval}).startswith(told)


def test_what_got_worse_is_named_with_both_values_and_what_got_better_is_not(results):
    results["models"]["sft"] |= {"greedy_correct": 10 / 12, "bits_per_byte": 0.9, "rude": 0.2}
    results["models"]["ppo"] |= {"greedy_correct": 9 / 12, "bits_per_byte": 1.1, "rude": 0.1, "distinct": 0.4}
    results["models"]["base"] |= {"bits_per_byte": 0.25}
    assert outcome.worse(results) == [
        "Got worse from base to sft: bits per byte of pretraining text 0.25 → 0.90.",
        "Got worse from sft to ppo: correct likeliest answers 83% → 75% (10 → 9 of 12), "
        "distinct responses 78% → 40%, bits per byte of pretraining text 0.90 → 1.10.",
    ]


def test_each_method_is_compared_with_sft_and_not_with_the_method_before(full):
    assert outcome.steps(full) == [("base", "sft")] + [
        ("sft", name) for name in ("ppo", "dpo", "grpo", "rloo", "rejection")
    ]


def test_a_chat_model_that_sft_starts_from_comes_before_it(results):
    results["models"]["start"] = results["models"].pop("base") | {"finished": 1.0}
    told = outcome.worse(results)
    assert "Got worse from start to sft: ends by itself 100% → 90%." in told
    assert not any("to start" in line for line in told)


def test_the_report_says_that_nothing_got_worse_but_nothing_for_a_single_model(results):
    assert outcome.worse(results) == ["No metric in the table got worse from one model to the next."]
    results["models"] = {"base": results["models"]["base"]}
    assert outcome.worse(results) == [] and outcome.winners(results) == []


def test_the_leader_is_named_even_if_it_is_not_the_last_model(results):
    results["models"]["ppo"] |= {"gold": -0.5, "gold_ci": [-0.7, -0.2]}
    told = " ".join(conclusions.quality(results, {}))
    assert told.startswith(
        "sft has the highest gold score, 0.12, ahead of ppo with −0.50; their intervals do not overlap."
    )
    assert "On training prompts sft reaches 0.22, 0.10 more than on held-out ones." in told


def best(gold, n=(1, 2, 4)):
    ci = [[value - 0.1, value + 0.1] for value in gold]
    return {"n": list(n), "kl": [0.0, 0.2, 0.6], "score": [0.0, 1.0, 2.0], "gold": gold, "gold_ci": ci}


@pytest.mark.parametrize(
    ("gold", "told"),
    [
        ([0.0, 0.2, 0.4], "raises the gold score from 0.00 at n = 1 to 0.40 at n = 4."),
        (
            [0.0, 0.4, 0.2],
            "falls to 0.20 while the reward model's score rises from 1.00 to 2.00: choosing exploits",
        ),
        ([0.0, 0.4, 0.35], "falls to 0.35 while the reward model's score rises from 1.00 to 2.00: the drop is within"),
        ([0.4, 0.2, 0.1], "does not raise the gold score: it is highest at n = 1, without choosing."),
    ],
)
def test_the_report_says_whether_choosing_helps_or_turns(results, gold, told):
    assert told in " ".join(conclusions.best_of_n(results | {"best_of_n": best(gold)}, {}))


@pytest.mark.parametrize(
    ("kl", "reached", "told"),
    [
        (0.4, 0.9, "At the KL of ppo (0.40), choosing reaches about 0.30 and ppo 0.90: better than choosing."),
        (0.4, 0.1, "At the KL of ppo (0.40), choosing reaches about 0.30 and ppo 0.10: no better than choosing."),
        (2.0, 0.1, "ppo moved further from sft than any n here (KL 2.00) and reaches 0.10, not above the best"),
    ],
)
def test_training_is_compared_with_choosing_at_the_same_kl(results, kl, reached, told):
    results["models"]["ppo"] |= {"kl": kl, "gold": reached}
    assert told in " ".join(conclusions.best_of_n(results | {"best_of_n": best([0.0, 0.2, 0.4])}, {}))


@pytest.mark.parametrize(
    ("last", "interval", "told"),
    [
        (0.8, [0.6, 0.9], "voting helps"),
        (0.45, [0.3, 0.6], "no clear gain from voting"),
        (0.1, [0, 0.2], "voting hurts"),
    ],
)
def test_the_interval_decides_whether_a_vote_helps(results, last, interval, told):
    votes = {"k": [1, 5], "correct": [0.4, last], "correct_ci": [[0.3, 0.5], interval]}
    assert f"{told}." in " ".join(conclusions.majority(results | {"majority": votes}, {}))


@pytest.mark.parametrize(
    ("interval", "told"),
    [([0.2, 0.5], "above chance"), ([0.1, 0.5], "not distinguishable from chance"), ([0, 0.1], "below chance")],
)
def test_a_reward_model_that_knows_less_than_the_models_is_reported(results, interval, told):
    results["models"]["sft"]["greedy_correct"] = 0.8
    results["models"]["ppo"]["greedy_correct"] = 0.4
    results["choice"] = {"reward_model": 0.3, "reward_model_ci": interval, "chance": 0.125, "questions": 12}
    text = " ".join(conclusions.choice(results, {}))
    assert f"30% [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}] of the time, {told} (12%)" in text
    assert "It knows less than sft (80%)" in text


def test_confidence_above_and_below_accuracy_is_distinguished(results):
    metrics = results["reward_model"]
    for accuracy, told in (
        (0.6, "overconfident"),
        (0.8, "well calibrated"),
        (0.95, "underconfident"),
    ):
        metrics["reliability_heldout"] = [{"pairs": 10, "confidence": 0.8, "accuracy": accuracy}, {"pairs": 0}]
        text = " ".join(conclusions.reward_model(results, {}))
        assert text.startswith("It ranks 77% [72, 81] of the pairs on held-out prompts correctly: better than chance.")
        assert "That is 14 points lower than on training prompts, 91%." in text and f"It is {told}" in text


def rollouts(score, gold):
    return {"ppo": {"rollout/score": Curve([0, 1], score), "rollout/gold": Curve([0, 1], gold)}}


@pytest.mark.parametrize(
    ("score", "gold", "told"),
    [
        ([0.0, 1.0], [0.0, 0.5], "Both scores rose"),
        ([0.0, 1.0], [0.5, 0.0], "ppo exploits the reward model's mistakes"),
        ([0.0, 1.0], [0.5, 0.5], "is no better"),
        ([1.0, 0.5], [0.0, 0.5], "has not learned what the reward model likes"),
    ],
)
def test_the_verdict_on_learning_follows_the_judge(results, score, gold, told):
    assert told in " ".join(conclusions.learning(results, rollouts(score, gold)))


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([3.0, 1.0, 2.0], "it was lowest at step 10 (1.00), and later steps only overfit"),
        ([3.0, 2.0, 1.0], "was still falling: more steps would help"),
        ([3.0, 1.0, 1.0], "went from 3.00 to 1.00."),
        ([3.0], "was measured once, 3.00"),
    ],
)
def test_a_loss_that_rose_or_still_falls_is_reported(results, losses, told):
    curve = Curve([0, 10, 20][: len(losses)], losses)
    assert told in " ".join(conclusions.learning(results, {"sft": {"val/loss": curve}}))
