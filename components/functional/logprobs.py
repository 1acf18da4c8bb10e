"""Log-probabilities, entropy and KL divergences of next-token distributions, in nats, in at least float32."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from components.functional.shapes import at_least_float32, same_shape


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature in at least float32, out of place: logits are often a view of a tensor still in use."""
    if temperature <= 0:
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")
    wide = at_least_float32(logits)
    return wide if temperature == 1 else wide / temperature


class _GatherLogprobs(torch.autograd.Function):
    """Saves only the original logits for the backward pass: no second (N, V) tensor, no float32 copy."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
        scaled = _scaled(logits, temperature)
        log_normalizer = scaled.logsumexp(dim=-1)
        ctx.save_for_backward(logits, targets, log_normalizer)
        ctx.temperature = temperature
        return scaled.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - log_normalizer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, log_normalizer = ctx.saved_tensors
        # d logp / d logits = (onehot(target) − softmax) / temperature
        result = (_scaled(logits, ctx.temperature) - log_normalizer.unsqueeze(-1)).exp_().neg_()
        result.scatter_add_(-1, targets.unsqueeze(-1), torch.ones_like(log_normalizer).unsqueeze(-1))
        result.mul_((grad / ctx.temperature).unsqueeze(-1))
        # a row without an incoming gradient can contain NaN, and NaN·0 is NaN
        result.masked_fill_((grad == 0).unsqueeze(-1), 0.0)
        return result.to(logits.dtype), None, None


def gather_logprobs(logits: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    """Log-probability of each target: x_target − logsumexp(x),  x = logits / temperature.

    logits: (..., V), any float type. targets: (...) int64, each below V, even where they are masked later.
    Returns (...) nats, float32 (float64 for float64 logits); differentiable once. A row whose incoming
    gradient is exactly 0 gets a gradient of exactly 0, even if its logits contain NaN.
    Raises ValueError if shapes differ or temperature <= 0.
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"gather_logprobs: expected logits (..., V) and targets (...), got {tuple(logits.shape)} and "
            f"{tuple(targets.shape)}"
        )
    return _GatherLogprobs.apply(logits, targets, temperature)  # type: ignore[no-untyped-call]


def entropy(logits: Tensor, *, temperature: float) -> Tensor:
    """Entropy of each next-token distribution: −Σ p log p,  p = softmax(logits / temperature); 0·log 0 = 0.

    logits: (..., V); −inf allowed. Returns (...) nats.  Raises ValueError if temperature <= 0.
    In a loss, select the rows that count before the call: a NaN row has a NaN gradient.
    """
    logp = _scaled(logits, temperature).log_softmax(dim=-1)
    return -(logp.exp() * torch.where(logp == -torch.inf, 0.0, logp)).sum(dim=-1)


def kl_k1(logp: Tensor, logq: Tensor) -> Tensor:
    """k1 = log p − log q at sampled tokens: unbiased for KL(p‖q), can be negative; PPO's penalty.

    logp, logq: log-probabilities (nats) of tokens sampled from p, of the same shape, which is also the result's.
    Raises ValueError if shapes differ.  Source: Schulman 2020, "Approximating KL divergence", k1.
    """
    same_shape("kl_k1", logp=logp, logq=logq)
    return at_least_float32(logp) - at_least_float32(logq)


def kl_k3(logp: Tensor, logq: Tensor) -> Tensor:
    """k3 = q/p − 1 − log(q/p) at sampled tokens: unbiased for KL(p‖q) and never negative.

    Its gradient through log p is that of KL(q‖p), the reverse divergence. Used as a metric to log, and as the
    penalty in GRPO's loss. exp can overflow on masked tokens, so in a loss pass logp and logq through zero_outside
    first.
    Shapes, units and errors as in kl_k1.
    Source: Schulman 2020, "Approximating KL divergence", k3; Shao et al. 2024 (DeepSeekMath), eq. 4.
    """
    same_shape("kl_k3", logp=logp, logq=logq)
    log_ratio = kl_k1(logp, logq)
    return torch.expm1(-log_ratio) + log_ratio
