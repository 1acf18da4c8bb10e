import math

import pytest
import torch

from components.functional.length_control import length_controlled_logit, length_features, logistic_regression


def logit(wins: float, losses: float) -> float:
    return math.log(wins / losses)


def test_without_a_feature_half_a_win_and_half_a_loss_are_added():
    # Jeffreys' prior on one probability is Beta(½, ½), whose mode on the logit scale is (wins + ½) / (n + 1)
    ones = torch.ones(4, 1)
    found = logistic_regression(ones, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert found.tolist() == pytest.approx([logit(3.5, 1.5)])
    assert logistic_regression(ones, torch.ones(4)).tolist() == pytest.approx([logit(4.5, 0.5)])


def test_a_tie_counts_as_half_a_win():
    found = logistic_regression(torch.ones(2, 1), torch.tensor([1.0, 0.5]))
    assert found.tolist() == pytest.approx([logit(2.0, 1.0)])  # 1.5 + ½ of 2 + 1


def test_two_groups_are_estimated_one_by_one():
    # x is 1 in one group, −1 in the other: b₀ ± b₁ are the groups' own logits, each with half a win and half a loss
    x = torch.tensor([[1.0, 1.0]] * 4 + [[1.0, -1.0]] * 2)
    y = torch.tensor([1.0, 1, 1, 0, 0, 1])
    high, low = logit(3.5, 1.5), logit(1.5, 1.5)
    assert logistic_regression(x, y).tolist() == pytest.approx([(high + low) / 2, (high - low) / 2])


def test_separable_outcomes_have_finite_coefficients():
    x = torch.stack([torch.ones(40), torch.linspace(-1, 1, 40)], 1)
    found = logistic_regression(x, (x[:, 1] > 0).float())
    assert found.isfinite().all() and abs(found[0]) < 1e-6 < found[1]


def test_the_estimate_is_where_the_penalized_likelihood_is_highest():
    generator = torch.Generator().manual_seed(0)
    x = torch.stack([torch.ones(30), torch.randn(30, generator=generator)], 1).double()
    y = (torch.rand(30, generator=generator) < 0.6).double()

    def penalized(b):
        p = torch.sigmoid(x @ b)
        information = (x * (p * (1 - p))[:, None]).T @ x
        return torch.nn.functional.binary_cross_entropy(p, y, reduction="sum") - torch.logdet(information) / 2

    b = logistic_regression(x, y).requires_grad_()
    [gradient] = torch.autograd.grad(penalized(b), b)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0)


def test_equal_gaps_are_no_feature_and_others_are_in_deviations():
    assert length_features(torch.tensor([3.0, 3.0])).tolist() == [[1.0], [1.0]]
    # deviation of 2, −2 is 2
    assert length_features(torch.tensor([2.0, -2.0])).tolist() == [[1, math.tanh(1)], [1, -math.tanh(1)]]


def test_a_model_that_wins_by_length_alone_does_not_win_at_equal_length():
    # longer in 12 of 16 answers, of which it wins 11, and it wins 1 of the 4 in which it is shorter: 12 of 16 in all
    gaps = torch.tensor([10.0] * 12 + [-10.0] * 4)
    credits = torch.tensor([1.0] * 11 + [0.0] + [1.0] + [0.0] * 3)
    tanh = math.tanh(10 / float(gaps.std(correction=0)))  # x is ± this, so θ is the mean of the groups' logits
    assert tanh == pytest.approx(math.tanh(10 / math.sqrt(75)))
    assert length_controlled_logit(credits, gaps) == pytest.approx((logit(11.5, 1.5) + logit(1.5, 3.5)) / 2)


def test_the_two_sides_of_a_comparison_are_mirror_images():
    gaps, credits = torch.tensor([4.0, -1.0, 7.0, 2.0]), torch.tensor([1.0, 0.0, 1.0, 0.5])
    assert length_controlled_logit(credits, gaps) == pytest.approx(-length_controlled_logit(1 - credits, -gaps))


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="logistic_regression: expected features"):
        logistic_regression(torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="logistic_regression: expected features"):
        logistic_regression(torch.ones(0, 1), torch.ones(0))
    with pytest.raises(ValueError, match="length_controlled_logit"):
        length_controlled_logit(torch.ones(2), torch.ones(3))
