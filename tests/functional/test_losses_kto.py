import pytest
import torch

from components.functional.losses import kto, kto_reference_point
from tests.kit.float64 import close, doubles, scalar

PLAIN = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}
SLOPE = 0.1 * 0.5374298453 * 0.4625701547  # β σ(x) (1 − σ(x)) at x = β(2 − 0.5) = 0.15


@pytest.mark.parametrize(
    ("desirable", "expected", "slope"), [(True, 0.4625701547, -SLOPE), (False, 0.5374298453, SLOPE)]
)
def test_kto_and_its_gradient_by_hand(desirable, expected, slope):
    """r = 2 and z₀ = 0.5: 1 − σ(0.15) of a desirable answer, 1 − σ(−0.15) of an undesirable one."""
    ratio, label = doubles(2.0).requires_grad_(), torch.tensor([desirable])
    loss = kto(ratio, label, scalar(0.5), **PLAIN)
    loss.backward()
    close(loss.detach(), scalar(expected))
    close(ratio.grad, doubles(slope))


def test_weights_multiply_each_label_and_the_mean_is_over_answers():
    ratios, labels = doubles(2.0, 2.0, 2.0), torch.tensor([True, False, False])
    loss = kto(ratios, labels, scalar(0.5), beta=0.1, desirable_weight=3.0, undesirable_weight=0.5)
    close(loss, scalar((3 * 0.4625701547 + 0.5 * 2 * 0.5374298453) / 3))


def test_at_the_reference_each_answer_has_half_its_weight_as_loss_and_a_quarter_of_beta_as_slope():
    ratios, labels = doubles(0.0, 0.0).requires_grad_(), torch.tensor([True, False])
    loss = kto(ratios, labels, scalar(0.0), beta=0.3, desirable_weight=1.0, undesirable_weight=2.0)
    loss.backward()
    close(loss.detach(), scalar(0.75))
    close(ratios.grad, doubles(-0.3 / 4, 2 * 0.3 / 4) / 2)  # mean over the two answers


def test_the_reference_point_is_the_mean_of_mismatched_answers_but_not_below_zero():
    close(kto_reference_point(doubles(1.0, -0.5, 1.0)), scalar(0.5))
    close(kto_reference_point(doubles(1.0, -2.5)), scalar(0.0))
    close(kto_reference_point(doubles()), scalar(0.0))


def test_the_reference_point_has_no_gradient():
    assert not kto_reference_point(doubles(1.0, 2.0).requires_grad_()).requires_grad


def test_the_reference_point_is_one_mean_over_all_processes():
    """One answer of 4 here and three of 0 elsewhere: 1, not 2, the mean of the processes' means."""
    elsewhere = lambda sums: sums + doubles(0.0, 3.0)
    close(kto_reference_point(doubles(4.0), sum_over_ranks=elsewhere), scalar(1.0))
    close(kto_reference_point(doubles(-4.0), sum_over_ranks=lambda sums: sums + doubles(6.0, 1.0)), scalar(1.0))


def test_the_loss_of_nothing_is_zero_and_mistakes_are_refused_by_name():
    empty = torch.zeros(0, requires_grad=True)
    loss = kto(empty, torch.zeros(0, dtype=torch.bool), scalar(0.0), **PLAIN)
    assert loss.item() == 0.0
    loss.backward()
    with pytest.raises(ValueError, match=r"kto.*log_ratios \(2,\)"):
        kto(doubles(1.0, 2.0), torch.tensor([True]), scalar(0.0), **PLAIN)
    with pytest.raises(ValueError, match="kto: expected a bool mask"):
        kto(doubles(1.0), doubles(1.0), scalar(0.0), **PLAIN)


def test_its_gradient_agrees_with_finite_differences():
    ratios, labels = doubles(1.5, -0.7, 0.3, 4.0).requires_grad_(), torch.tensor([True, False, True, False])
    settings = {"beta": 0.5, "desirable_weight": 1.3, "undesirable_weight": 0.7}
    assert torch.autograd.gradcheck(lambda x: kto(x, labels, scalar(0.4), **settings), ratios)
