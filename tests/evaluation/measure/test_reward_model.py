import math

import pytest
import torch
from torch import nn
from torchmetrics.classification import BinaryCalibrationError

from components.data.batches import PreferenceBatch
from components.evaluation.measure.reward_model import evaluate_ranking, reliability
from components.functional.estimators import calibration_error
from components.models.attention.layout import pack


class LastIdIsTheScore(nn.Module):
    """Scores every token by its id / 10, so a test chooses an answer's score by its last token."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, layout=None):
        return input_ids / 10


def batch(*records):
    """records: (prompt, [(answer, rank), …])."""
    packed = pack([[prompt, *(a for a, _ in answers)] for prompt, answers in records], row_length=64, filler=0)
    spans = [span for document in packed.spans for span in document[1:]]
    answers = [(g, a, rank) for g, (_, listed) in enumerate(records) for a, rank in listed]
    return PreferenceBatch.of(
        input_ids=packed.input_ids,
        layout=packed.layout,
        last=torch.tensor([start + length - 1 for start, length in spans]),
        prompt_last=torch.tensor([sum(document[0]) - 1 for document in packed.spans for _ in document[1:]]),
        groups=torch.tensor([g for g, _, _ in answers]),
        ranks=torch.tensor([float(rank) for _, _, rank in answers]),
        lengths=torch.tensor([len(a) for _, a, _ in answers]),
        finished=torch.ones(len(answers), dtype=torch.bool),
    )


PAIRS = (
    ([1, 2], [([5, 40], 0), ([5, 20], 1)]),  # +2: right, matched length
    ([1, 3], [([5, 5, 10], 0), ([20], 1)]),  # −1: wrong, the better one is longer
    ([1, 4], [([30], 1), ([5, 5, 30], 0)]),  # 0: a tie, the better one is longer
)


def test_metrics_of_three_pairs_worked_out_by_hand():
    found = evaluate_ranking(LastIdIsTheScore(), [batch(*PAIRS)])
    shares = found.shares
    assert shares.accuracy == pytest.approx(0.5)
    assert (found.pairs, found.prompts) == (3, 3)
    assert shares.margin == pytest.approx(1 / 3)
    assert (shares.accuracy_length_matched, found.pairs_length_matched) == (1.0, 1)
    assert shares.longer_wins == pytest.approx((0.5 + 1 + 1) / 3)
    # scores 4 2 1 2 3 3, lengths 2 2 3 1 1 3: means 2.5 and 2, Σxy = −1, Σx² = 5.5, Σy² = 4
    assert shares.score_length_correlation == pytest.approx(-1 / math.sqrt(22))
    low, high = found.accuracy_ci
    assert 0 <= low < 0.5 < high <= 1


def test_how_much_better_than_the_longer_wins_is_measured_pair_by_pair_with_intervals_over_prompts():
    # credit 1 0 ½, that of the rule ½ 1 1: differences ½ −1 −½, mean −1/3; residuals 5/6 −4/6 −1/6, squared error
    # Σ residuals² / (3·2) = (42/36)/6 = 7/36; Student's t with 2 degrees of freedom is 4.303
    found = evaluate_ranking(LastIdIsTheScore(), [batch(*PAIRS)])
    assert found.over_longer == pytest.approx(-1 / 3)
    assert found.over_longer_ci == pytest.approx([-1 / 3 - 4.303 * (7 / 36) ** 0.5, -1 / 3 + 4.303 * (7 / 36) ** 0.5])
    low, high = found.longer_wins_ci
    assert low < found.shares.longer_wins < high <= 1
    # one pair of matched length, correct: Wilson's interval of 1 of 1 is [1 / (1 + z²), 1]
    assert found.accuracy_length_matched_ci == pytest.approx([1 / (1 + 1.959964**2), 1])
    none = evaluate_ranking(LastIdIsTheScore(), [batch(*PAIRS[1:])])
    assert none.shares.accuracy_length_matched is none.accuracy_length_matched_ci is None


def test_the_length_of_an_answer_that_was_cut_is_unknown_but_longer():
    pair = ([1, 2], [([5, 40], 0), ([5, 20], 1)])
    whole = batch(pair, pair, pair)
    cut = whole._replace(finished=torch.tensor([False, True, True, False, False, False]))
    found = evaluate_ranking(LastIdIsTheScore(), [cut])
    # the better one is longer, then the worse one, then nobody knows; no pair has matched lengths
    assert found.shares.longer_wins == pytest.approx((1 + 0 + 0.5) / 3)
    assert (found.shares.accuracy_length_matched, found.pairs_length_matched) == (None, 0)


def test_the_scores_of_all_answers_are_returned_in_the_order_of_the_batches():
    found = evaluate_ranking(LastIdIsTheScore(), [batch(*PAIRS[1:]), batch(PAIRS[0])])
    assert found.scores.tolist() == pytest.approx([1, 2, 3, 3, 4, 2])
    assert "scores" not in found.metrics()


def test_batches_and_prompts_of_several_answers_add_up():
    whole = evaluate_ranking(LastIdIsTheScore(), [batch(*PAIRS)])
    apart = evaluate_ranking(LastIdIsTheScore(), [batch(pair) for pair in PAIRS])
    assert apart.metrics() == whole.metrics()
    four = batch(([1], [([9], 0), ([8], 1), ([7], 2), ([6], 3)]))
    assert evaluate_ranking(LastIdIsTheScore(), [four]).pairs == 6


def test_records_of_one_prompt_are_one_prompt_even_in_different_batches():
    answers = [([40], 0), ([20], 1)]
    batches = [batch(([1, 2], answers)), batch(([1, 2], answers), ([1, 3], answers))]
    found = evaluate_ranking(LastIdIsTheScore(), batches)
    assert (found.pairs, found.prompts) == (3, 2)


def test_calibration_error_is_that_of_the_checklist():
    # confidence .55 .65 .75 .85 .95 .95, right 1 0 1 1 1 0: gaps .45 .65 .25 .15, and |.5 − .95| twice: 2.4 / 6
    right = torch.tensor([1.0, 0, 1, 1, 1, 0])
    confidence = torch.tensor([0.55, 0.65, 0.75, 0.85, 0.95, 0.95])
    bins = reliability(confidence, right)
    assert [one.pairs for one in bins] == [1, 1, 1, 1, 2]
    assert sum(one.pairs * abs(one.accuracy - one.confidence) for one in bins) / 6 == pytest.approx(0.4)


def test_calibration_error_and_bins_are_those_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    confidence = 0.5 + 0.5 * torch.rand(500, generator=generator)
    right = (torch.rand(500, generator=generator) < 0.7).float()
    theirs = BinaryCalibrationError(n_bins=10, norm="l1")(confidence, right.int())
    bins = reliability(confidence, right)
    ours = sum(one.pairs * abs(one.accuracy - one.confidence) for one in bins) / 500
    assert ours == pytest.approx(float(theirs), abs=1e-5)
    assert float(calibration_error(confidence, right, num_bins=len(bins))) == pytest.approx(ours, abs=1e-5)


def test_a_model_that_guesses_is_half_right_and_calibrated():
    found = evaluate_ranking(LastIdIsTheScore(), [batch(*(([1, n], [([7], 0), ([7], 1)]) for n in range(2, 6)))])
    assert (found.shares.accuracy, found.shares.ece, found.shares.margin) == (0.5, 0, 0)
    assert found.shares.score_length_correlation is None
    empty = {"low": 0.6, "high": 0.7, "pairs": 0, "confidence": None, "accuracy": None}
    assert found.reliability[1]._asdict() == pytest.approx(empty)


def test_rankings_in_which_nothing_is_better_than_anything_are_refused():
    with pytest.raises(ValueError, match="different rank"):
        evaluate_ranking(LastIdIsTheScore(), [batch(([1], [([9], 0), ([8], 0)]))])
