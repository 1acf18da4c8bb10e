"""A masked entry, NaN or a huge number, changes no loss, no metric and no gradient."""

import pytest
import torch

from components.functional.advantages import gae, token_rewards
from components.functional.logprobs import gather_logprobs, kl_k1, kl_k3
from components.functional.losses import (
    aggregate,
    causal_lm,
    clipped_surrogate,
    clipped_weight,
    ppo_policy,
    ppo_value,
    sequence_surrogate,
)
from components.functional.masking import masked_mean, masked_whiten, zero_outside

GENERATOR = torch.Generator().manual_seed(0)
# a full row, a padded row, a row with a hole, an empty row
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]).bool()
FIRST, SECOND, THIRD = torch.randn(3, 4, 4, dtype=torch.float64, generator=GENERATOR)
LOGITS = torch.randn(4, 4, 6, dtype=torch.float64, generator=GENERATOR)
IDS = torch.randint(0, 6, (4, 4), generator=GENERATOR)


def lm(logits, _second, _third):
    return (causal_lm(gather_logprobs(logits, IDS, temperature=0.8), MASK),)


def ppo(logits, old_logprobs, advantages):
    logprobs = gather_logprobs(logits, IDS, temperature=1.0)
    return ppo_policy(logprobs, old_logprobs, advantages, MASK, clip_low=0.2, clip_high=0.2, dual_clip=3.0)


def grpo(logits, ref_logprobs, advantages):
    logprobs = gather_logprobs(logits, IDS, temperature=1.0)
    losses, clipped = clipped_surrogate(
        logprobs, ref_logprobs, advantages, MASK, clip_low=0.2, clip_high=0.28, dual_clip=None
    )
    kl = kl_k3(zero_outside(logprobs, MASK), zero_outside(ref_logprobs, MASK))
    ways = ("sequence_mean", "token_mean", "fixed_length", "sequence_sum")
    return *(aggregate(losses + 0.04 * kl, MASK, how=how, max_length=9) for how in ways), clipped.sum()


def other_ratios(logits, old_logprobs, advantages):
    logprobs = gather_logprobs(logits, IDS, temperature=1.0)
    outputs = []
    for surrogate in (sequence_surrogate, clipped_weight):
        losses, clipped = surrogate(logprobs, old_logprobs, advantages, MASK, clip_low=0.2, clip_high=0.28)
        outputs += [aggregate(losses, MASK, how="sequence_mean", max_length=None), clipped.sum()]
    return outputs


def value(values, old_values, returns):
    return ppo_value(values, old_values, returns, MASK, clip_range=0.2)


def unclipped_value(values, old_values, returns):
    return ppo_value(values, old_values, returns, MASK, clip_range=None)


def rollout(values, logprobs, ref_logprobs):
    kl = kl_k1(logprobs, ref_logprobs)
    rewards = token_rewards(torch.arange(4).double(), kl, MASK, beta=0.1)
    advantages, returns = gae(rewards, values, MASK, gamma=0.99, lam=0.95)
    whitened = masked_whiten(advantages, MASK, shift_mean=True)
    scaled = masked_whiten(rewards, MASK, shift_mean=False)
    return masked_mean(kl, MASK), (whitened**3).sum(), (scaled**3).sum(), (returns**2).sum(), advantages.sum()


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e9, -1e9])
@pytest.mark.parametrize(
    "function, first",
    [
        (lm, LOGITS),
        (ppo, LOGITS),
        (grpo, LOGITS),
        (other_ratios, LOGITS),
        (value, FIRST),
        (unclipped_value, FIRST),
        (rollout, FIRST),
    ],
)
def test_masked_entries_change_nothing(function, first, garbage):
    def run(fill):
        inputs = []
        for x in (first, SECOND, THIRD):
            x = x.clone()
            if fill is not None:
                x[~MASK] = fill
            inputs.append(x.requires_grad_())
        outputs = function(*inputs)
        sum(x for x in outputs if x.requires_grad).backward()
        return [x.detach() for x in outputs], [x.grad for x in inputs if x.grad is not None]

    (clean, clean_gradients), (dirty, dirty_gradients) = run(None), run(garbage)
    assert all(x.isfinite().all() for x in clean + clean_gradients)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(clean_gradients, dirty_gradients, strict=True))
    assert clean_gradients[0][MASK].abs().sum() > 0


def test_the_check_above_would_notice_multiplying_by_the_mask():
    x = FIRST.clone()
    x[~MASK] = float("nan")
    x.requires_grad_()
    loss = (x.square() * MASK).sum()
    loss.backward()
    assert loss.isnan() and x.grad.isnan().any()
