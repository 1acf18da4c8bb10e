"""GSPO has one ratio a response, CISPO a bounded weight; both are the policy gradient where no bound is reached."""

import pytest
import torch

from components.functional.losses import aggregate, clipped_surrogate, clipped_weight, sequence_surrogate
from tests.kit.float64 import all_true, close, doubles, scalar

LOG_RATIOS = doubles([0.02, -0.01, 0.05])  # their mean is .02, and e^.02 = 1.0202013400
PUBLISHED = {"clip_low": 3e-4, "clip_high": 4e-4}
CLIP = {"clip_low": 0.2, "clip_high": 0.28}


def sequences(log_ratios, advantage):
    """(loss of the response, gradient of its tokens, clipped)."""
    old = torch.full_like(log_ratios, -1.5)
    new, every = (old + log_ratios).requires_grad_(), all_true(old)
    losses, clipped = sequence_surrogate(new, old, torch.full_like(old, advantage), every, **PUBLISHED)
    loss = aggregate(losses, every, how="sequence_mean", max_length=None)
    loss.backward()
    return loss.detach(), new.grad, clipped


@pytest.mark.parametrize(
    ("log_ratios", "advantage", "loss", "gradient"),
    [
        (LOG_RATIOS, 1.0, -1.0004, 0.0),
        (LOG_RATIOS, -1.0, 1.0202013400, 1.0202013400 / 3),
        (-LOG_RATIOS, -1.0, 0.9997, 0.0),  # e^−.02 = .9801986733
        (-LOG_RATIOS, 1.0, -0.9801986733, -0.9801986733 / 3),
    ],
)
def test_a_sequence_ratio_is_the_geometric_mean_of_its_tokens_and_is_clipped_as_one(
    log_ratios, advantage, loss, gradient
):
    found, gradients, clipped = sequences(log_ratios, advantage)
    close(found, scalar(loss))
    close(gradients, torch.full((1, 3), gradient, dtype=torch.float64))
    assert (clipped == (gradient == 0)).all()


def test_responses_count_alike_however_long_they_are():
    """Of two tokens and of four, ratios 1.1 and 1.2, A = −1: (1.1 + 1.2) / 2."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    old, advantages = torch.full((2, 4), -2.0, dtype=torch.float64), doubles([-1.0] * 4, [-1.0] * 4)
    new = (old + doubles([1.1] * 4, [1.2] * 4).log()).requires_grad_()
    losses, _ = sequence_surrogate(new, old, advantages, mask, **CLIP)
    close(losses, doubles([1.1, 1.1, 0, 0], [1.2] * 4))
    loss = aggregate(losses, mask, how="sequence_mean", max_length=None)
    loss.backward()
    close(loss.detach(), scalar(1.15))
    close(new.grad, doubles([0.275, 0.275, 0, 0], [0.15] * 4))


def test_of_one_token_a_sequence_ratio_is_the_tokens():
    generator = torch.Generator().manual_seed(0)
    new, old, advantages = torch.randn(3, 200, 1, generator=generator, dtype=torch.float64)
    new.requires_grad_()
    by_token, clipped = clipped_surrogate(new, old, advantages, all_true(old), **CLIP)
    by_sequence, clipped_sequences = sequence_surrogate(new, old, advantages, all_true(old), **CLIP)
    assert 20 < clipped.sum() < 180
    assert torch.equal(by_sequence, by_token) and torch.equal(clipped_sequences, clipped)
    gradients = [torch.autograd.grad(losses.sum(), new)[0] for losses in (by_token, by_sequence)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("old", "new", "advantage", "clip_low", "loss", "gradient"),
    [
        (0.4, 0.6, 2.0, 0.2, 1.2259814970, -2.4),  # ρ 1.5, bounded to 1.2; ln .6 = −.5108256238
        (0.4, 0.6, -2.0, 0.2, -1.2259814970, 2.4),  # the surrogate leaves it at 1.5: 3.0
        (0.4, 0.2, 1.0, 0.2, 1.2875503300, -0.8),  # ρ .5, bounded to .8; ln .2 = −1.6094379124
        (0.4, 0.2, -1.0, 0.2, -1.2875503300, 0.8),  # the surrogate clips it: 0
        (0.4, 0.2, 1.0, 1.0, 0.8047189562, -0.5),  # without a lower bound
        (0.5, 0.55, 3.0, 0.2, 1.9728621025, -3.3),  # ρ 1.1, within the bounds; ln .55 = −.5978370008
    ],
)
def test_a_bounded_weight_multiplies_the_gradient_and_never_removes_it(old, new, advantage, clip_low, loss, gradient):
    logprobs = doubles(new).log().requires_grad_()
    losses, clipped = clipped_weight(
        logprobs, doubles(old).log(), doubles(advantage), all_true(logprobs), clip_low=clip_low, clip_high=0.2
    )
    losses.sum().backward()
    close(losses.detach(), doubles(loss))
    close(logprobs.grad, doubles(gradient))
    assert clipped.item() == (gradient not in (-0.5, -3.3))


@pytest.mark.parametrize("surrogate", [clipped_weight, sequence_surrogate])
def test_at_ratio_one_the_gradient_is_that_of_reinforce(surrogate):
    """−A ∇ log π, averaged over a response's tokens, then over responses."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    advantages = doubles([3] * 4, [-2] * 4)
    new = doubles([-1, -2, -9, -9], [-0.5, -1, -3, -0.1]).requires_grad_()
    losses, clipped = surrogate(new, new.detach(), advantages, mask, **CLIP)
    aggregate(losses, mask, how="sequence_mean", max_length=None).backward()
    close(new.grad, doubles([-0.75, -0.75, 0, 0], [0.25] * 4))
    assert not clipped.any()


def test_within_its_bounds_a_weight_has_the_gradient_of_the_surrogate():
    """∇ρ = ρ ∇ log π."""
    old, advantages = doubles(-1.0, -2.0, -0.3), doubles(1.5, -0.7, 2.0)
    new = (old + doubles(0.1, -0.2, 0.2)).requires_grad_()
    pair = [
        function(new, old, advantages, all_true(old), **CLIP)[0] for function in (clipped_weight, clipped_surrogate)
    ]
    weight, surrogate = (torch.autograd.grad(losses.sum(), new)[0] for losses in pair)
    close(weight, surrogate)
