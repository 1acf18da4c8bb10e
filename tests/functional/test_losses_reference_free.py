import math
from functools import partial

import pytest
import torch

from components.functional.losses import orpo, simpo
from tests.kit.float64 import close, doubles, scalar


def test_simpo_and_its_gradient_by_hand():
    """β(m_w − m_l) − γ = 2 · 0.3 − 0.3 = 0.3: −log σ(0.3); the slopes are ∓β(1 − σ(0.3))."""
    chosen, rejected = doubles(-0.5).requires_grad_(), doubles(-0.8).requires_grad_()
    loss = simpo(chosen, rejected, beta=2.0, margin=0.3)
    loss.backward()
    close(loss.detach(), scalar(0.5543552445))
    close(chosen.grad, doubles(-2 * 0.4255574832))
    close(rejected.grad, doubles(2 * 0.4255574832))


def test_orpo_and_its_gradient_by_hand():
    """Mean probabilities 0.6 and 0.3: odds 1.5 and 0.428571, so −log σ(log 3.5) = 0.251314, next to −log 0.6.

    The slope of log odds(m) is 1 / (1 − e^m): 2.5 and 1 / 0.7; 1 − σ(log 3.5) = 1 / 4.5.
    """
    chosen, rejected = doubles(math.log(0.6)).requires_grad_(), doubles(math.log(0.3)).requires_grad_()
    loss = orpo(chosen, rejected, weight=0.1)
    loss.backward()
    close(loss.detach(), scalar(-math.log(0.6) + 0.1 * 0.2513144283))
    close(chosen.grad, doubles(-1 - 0.1 * 2.5 / 4.5))
    close(rejected.grad, doubles(0.1 / 0.7 / 4.5))


def test_without_its_second_term_orpo_is_the_loss_of_the_better_answers():
    close(orpo(doubles(-0.5, -1.5), doubles(-3.0, -0.1), weight=0.0), scalar(1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_answers_have_finite_odds_and_gradients(dtype):
    chosen = torch.tensor([0.0, -0.5, 0.0], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([-0.5, 0.0, 0.0], dtype=dtype, requires_grad=True)
    loss = orpo(chosen, rejected, weight=1.0)
    loss.backward()
    assert loss.isfinite() and chosen.grad.isfinite().all() and rejected.grad.isfinite().all()


@pytest.mark.parametrize("loss", [partial(simpo, beta=2.0, margin=0.5), partial(orpo, weight=0.5)])
def test_a_loss_of_pairs_is_0_for_none_refuses_other_shapes_and_has_the_gradient_of_finite_differences(loss):
    empty = torch.zeros(0, requires_grad=True)
    assert loss(empty, empty).item() == 0.0
    loss(empty, empty).backward()
    with pytest.raises(ValueError, match=r"chosen \(2,\), rejected \(1,\)"):
        loss(doubles(-1.0, -2.0), doubles(-1.0))
    chosen, rejected = doubles(-0.4, -2.0, -0.9).requires_grad_(), doubles(-1.4, -0.7, -0.9).requires_grad_()
    assert torch.autograd.gradcheck(loss, (chosen, rejected))
