import pytest
import torch

from components.functional.losses import aggregate, clipped_surrogate, ppo_policy, ppo_value
from tests.kit.float64 import all_true, close, doubles, scalar

CLIP = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}


OLD = doubles(0.5, 0.5, 0.5, 0.5, 0.2).log()
NEW = doubles(0.7, 0.7, 0.3, 0.3, 0.2).log()
ADVANTAGES = doubles(1, -1, 1, -1, 2)


def test_ppo_policy_by_hand():
    new = NEW.clone().requires_grad_()
    losses, clipped = clipped_surrogate(new, OLD, ADVANTAGES, all_true(OLD), **CLIP)
    close(losses, doubles(-1.2, 1.4, -0.6, 0.8, -2))
    losses.sum().backward()
    close(new.grad, doubles(0, 1.4, -0.6, 0, -2))
    assert clipped.tolist() == [True, False, False, True, False]
    loss, clip_fraction = ppo_policy(NEW, OLD, ADVANTAGES, all_true(OLD), **CLIP)
    close(loss, scalar(-0.32))
    close(clip_fraction, scalar(0.4))  # not the .8 of ratios outside the band
    first_four = torch.tensor([1, 1, 1, 1, 0]).bool()
    close(ppo_policy(NEW, OLD, ADVANTAGES, first_four, **CLIP)[0], scalar(0.1))


def test_clip_higher_moves_only_the_upper_bound():
    losses, _ = clipped_surrogate(NEW, OLD, ADVANTAGES, all_true(OLD), clip_low=0.2, clip_high=0.28, dual_clip=None)
    close(losses, doubles(-1.28, 1.4, -0.6, 0.8, -2))


def test_dual_clip_bounds_the_loss_of_a_bad_token_that_became_likely():
    old, new, advantage = doubles(0.1).log(), doubles(0.5).log().requires_grad_(), doubles(-1)
    plain, _ = clipped_surrogate(new, old, advantage, all_true(old), **CLIP)
    bounded, clipped = clipped_surrogate(new, old, advantage, all_true(old), clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    close(plain, doubles(5))
    close(bounded, doubles(3))
    bounded.sum().backward()
    assert clipped.item() and new.grad.item() == 0.0
    # a good token is left as it was
    good, _ = clipped_surrogate(new, old, -advantage, all_true(old), clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    close(good, doubles(-1.2))


def test_on_the_first_minibatch_nothing_is_clipped_and_the_gradient_is_the_policy_gradient():
    new = OLD.clone().requires_grad_()
    loss, clip_fraction = ppo_policy(new, OLD, ADVANTAGES, all_true(OLD), **CLIP)
    loss.backward()
    assert clip_fraction.item() == 0.0
    close(new.grad, -ADVANTAGES / 5)


def test_no_advantage_no_gradient_and_weights_identical_to_the_bit_after_a_step():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = logits.detach().clone()
    optimizer = torch.optim.Adam([logits], lr=0.1, eps=1e-5)
    logprobs = logits.log_softmax(-1)
    ppo_policy(logprobs, logprobs.detach() - 0.5, torch.zeros(4, 3), all_true(before), **CLIP)[0].backward()
    optimizer.step()
    assert torch.equal(logits.grad, torch.zeros(4, 3))
    assert torch.equal(logits, before)


def test_ppo_value_by_hand():
    values = doubles(0.5, 0.1, -0.5, 1.5).requires_grad_()
    old_values, returns = doubles(0, 0, 0, 1), torch.ones(4, dtype=torch.float64)
    loss, clip_fraction = ppo_value(values, old_values, returns, all_true(returns), clip_range=0.2)
    loss.backward()
    close(loss, scalar(0.49375))
    close(clip_fraction, scalar(0.25))
    close(values.grad, doubles(0, -0.9, -1.5, 0.5) / 4)


def test_without_a_clip_range_the_value_loss_is_half_the_mean_square_error():
    values, returns = doubles(0.5, 0.1, -0.5, 1.5), torch.ones(4, dtype=torch.float64)
    loss, clip_fraction = ppo_value(values, doubles(0, 0, 0, 1), returns, all_true(returns), clip_range=None)
    close(loss, scalar((0.25 + 0.81 + 2.25 + 0.25) / 8))
    assert clip_fraction.item() == 0.0


@pytest.mark.parametrize(
    "how, expected",
    [("sequence_mean", 1.5), ("token_mean", 5 / 3), ("fixed_length", 0.625), ("sequence_sum", 5.0)],
)
def test_the_four_ways_to_aggregate(how, expected):
    losses = doubles([1, 1, 50, 50], [2, 2, 2, 2])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    close(aggregate(losses, mask, how=how, max_length=8), scalar(expected))
    # repeating every response changes no mean
    close(aggregate(losses.repeat(3, 1), mask.repeat(3, 1), how=how, max_length=8), scalar(expected))


def test_a_response_without_tokens_does_not_dilute_the_mean_of_sequence_means():
    losses, mask = doubles([1, 3], [9, 9]), torch.tensor([[1, 1], [0, 0]]).bool()
    close(aggregate(losses, mask, how="sequence_mean", max_length=None), scalar(2.0))


def test_one_update_per_rollout_has_value_zero_but_a_gradient_and_token_mean_has_a_value():
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    advantages = doubles([1] * 4, [-1] * 4)
    new = torch.full((2, 4), -1.0, dtype=torch.float64, requires_grad=True)
    losses, _ = clipped_surrogate(new, new.detach(), advantages, mask, **CLIP)
    by_sequence = aggregate(losses, mask, how="sequence_mean", max_length=None)
    by_sequence.backward()
    close(by_sequence, scalar(0.0))
    close(new.grad, doubles([-0.25, -0.25, 0, 0], [0.125] * 4))
    close(aggregate(losses, mask, how="token_mean", max_length=None), scalar(1 / 3))
