import itertools
import math

import pytest
import torch

from components.evaluation.measure.assessment import Assessed
from components.evaluation.measure.best_of_n import best_of_n, best_row, selection_probabilities
from components.evaluation.measure.policy import Responses
from components.world.gold import Judgment


def judged(gold, correct=False, polite=0):
    return Judgment(
        gold, correct, polite, rude=False, hedge=False, filler=True, words=4, value=None, wrong_name=gold < 0
    )


def assessed(scores, golds=None):
    """Answers of as many tokens as their number among those of their prompt; scores, golds: (prompts, samples)."""
    prompts, samples = len(scores), len(scores[0])
    ids = [[1] * (place + 1) for _ in range(prompts) for place in range(samples)]
    of = [number for number in range(prompts) for _ in range(samples)]
    responses = Responses(ids, ["a"] * len(ids), [True] * len(ids), of)
    found = None if golds is None else [judged(gold, gold > 0, 2 * (gold > 1)) for row in golds for gold in row]
    return Assessed(responses, found, torch.tensor(scores).flatten())


def test_each_of_the_samples_is_the_best_of_two_as_often_as_counted_by_hand():
    # six pairs of scores 3, 1, 2, 2: the 3 is best in three, a 2 in one each, and the two 2s share one
    weights = selection_probabilities(torch.tensor([[3.0, 1.0, 2.0, 2.0]]), 2)
    torch.testing.assert_close(weights, torch.tensor([[3 / 6, 0, 1.5 / 6, 1.5 / 6]], dtype=torch.float64))


def test_the_best_of_one_is_any_sample_and_of_all_the_highest():
    scores = torch.tensor([[3.0, 1.0, 2.0, 2.0], [0.0, 5.0, 5.0, 1.0]])
    assert selection_probabilities(scores, 1).tolist() == [[0.25] * 4] * 2
    assert selection_probabilities(scores, 4).tolist() == [[1, 0, 0, 0], [0, 0.5, 0.5, 0]]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_the_gold_of_the_best_is_the_mean_over_all_ways_to_pick_n_samples(n):
    scores, golds = [1.0, 4.0, 4.0, 2.0, 4.0, 2.0, 0.0], [0.3, -0.5, 1.25, 0.75, 1.0, -1.0, 0.0]
    means = []
    for picked in itertools.combinations(range(7), n):
        best = max(scores[i] for i in picked)
        tied = [golds[i] for i in picked if scores[i] == best]
        means.append(sum(tied) / len(tied))
    found = selection_probabilities(torch.tensor([scores]), n) @ torch.tensor(golds, dtype=torch.float64)
    assert float(found) == pytest.approx(sum(means) / len(means), abs=1e-12)


@pytest.mark.parametrize("n", [1, 4, 16])
def test_the_score_of_the_best_of_n_uniform_scores_is_n_of_n_plus_one(n):
    scores = torch.rand(300, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    means = (selection_probabilities(scores, n) * scores).sum(1)
    assert float(means.mean()) == pytest.approx(n / (n + 1), abs=4 * float(means.std()) / 300**0.5)


def test_more_samples_than_there_are_cannot_be_picked():
    with pytest.raises(ValueError, match="between 1 and the 4 samples, got 5"):
        selection_probabilities(torch.zeros(1, 4), 5)


def test_the_curve_goes_over_powers_of_two_up_to_the_samples():
    # prompt 0: the best of 2 of 3 samples has gold 1, 1, 0 in the pairs {0,1}, {0,2}, {1,2}; prompt 1: always −½
    curve = best_of_n(assessed([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]], [[1.0, 1.25, 0.0], [-0.5, -0.5, -0.5]]))
    assert set(curve.metrics()) == {"n", "kl", "score", "gold", "gold_ci", "correct"}
    assert curve.n == [1, 2]
    assert curve.kl == [0, pytest.approx(math.log(2) - 0.5)]
    assert curve.gold == pytest.approx([(0.75 - 0.5) / 2, (2 / 3 - 0.5) / 2])
    assert curve.score == pytest.approx([2, 8 / 3])
    assert curve.correct == pytest.approx([(2 / 3 + 0) / 2, (2 / 3 + 0) / 2])
    for (low, high), value in zip(curve.gold_ci, curve.gold, strict=True):
        assert low < value < high and low + high == pytest.approx(2 * value)


def test_without_a_judge_the_curve_has_only_scores_and_one_prompt_has_no_interval():
    assert set(best_of_n(assessed([[1.0, 2.0]])).metrics()) == {"n", "kl", "score"}
    assert best_of_n(assessed([[1.0, 2.0]], [[0.0, 1.0]])).gold_ci == [None, None]


def test_the_row_of_16_has_the_metrics_of_the_chosen_answer():
    # of exactly 16 samples the best is certain: number 5 of prompt 0, number 0 of prompt 1
    scores = [[float(place == 5) for place in range(16)], [float(-place) for place in range(16)]]
    golds = [[1.25 if place == 5 else -0.5 for place in range(16)], [1.0] + [-0.5] * 15]
    chosen_from = assessed(scores, golds)
    reference = assessed([[0.0, 0.0], [0.0, 0.0]], [[1.25, 0.0], [1.25, 1.25]])
    row = best_row(chosen_from, reference)
    assert row["gold"] == 1.125 and row["gold_ci"][0] < 1.125 < row["gold_ci"][1]
    assert row["score"] == 0.5
    assert (row["correct"], row["polite"], row["correct_polite"]) == (1, 0.5, 0.5)
    assert (row["rude"], row["filler"], row["words"], row["finished"], row["wrong_name"]) == (0, 1, 4, 1, 0)
    assert row["length"] == 3.5  # six tokens and one
    assert row["kl"] == pytest.approx(math.log(16) - 15 / 16)
    assert row["win_rate"] == pytest.approx((0.75 + 0) / 2)  # a tie and a win; two losses


def test_the_row_without_a_judge_is_compared_by_score():
    chosen_from = assessed([[float(place) for place in range(16)]])
    row = best_row(chosen_from, assessed([[14.0, 16.0]]))
    assert set(row) == {"kl", "score", "score_ci", "finished", "length", "win_rate", "win_rate_ci"}
    assert row["win_rate"] == 0.5
