"""Statistics over the true places of a mask; what lies elsewhere, NaN included, changes nothing."""

from collections.abc import Callable

import torch
from torch import Tensor

from components.functional.shapes import at_least_float32, same_shape_as_mask

WHITENING_EPS = 1e-8


def zero_outside(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is True, 0 elsewhere, in at least float32.

    Apply it before any other arithmetic on x: multiplying by the mask afterwards makes NaN·0 = NaN, in values
    and in gradients alike. x, mask: one shape. Raises ValueError if shapes differ or the mask is not bool.
    """
    same_shape_as_mask("zero_outside", mask, x=x)
    return torch.where(mask, at_least_float32(x), 0.0)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over all true places of the mask: Σ m·x / Σ m, and 0 for an empty mask.

    x, mask: one shape, any rank. Returns a scalar in the unit of x.
    Raises ValueError if shapes differ or the mask is not bool.
    """
    same_shape_as_mask("masked_mean", mask, x=x)
    return zero_outside(x, mask).sum() / mask.sum().clamp(min=1)


def masked_whiten(
    x: Tensor, mask: Tensor, *, shift_mean: bool, sum_over_ranks: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    """x scaled to unit variance over the true places: (x − μ)·rsqrt(σ² + 1e-8), plus μ unless shift_mean.

    μ and σ² are the mean and the biased variance over the true places of the whole tensor. sum_over_ranks
    adds a tensor up over all processes, so that every rank whitens by the same figures; alone, a process
    leaves it out. x, mask: one shape, any rank. Returns the same shape, unitless, 0 where the mask is False.
    Raises ValueError if shapes differ or the mask is not bool.
    Source: Huang et al. 2024, "The N implementation details of RLHF with PPO", whitening.
    """
    same_shape_as_mask("masked_whiten", mask, x=x)
    x = zero_outside(x, mask)
    total, count = sum_over_ranks(torch.stack([x.sum(), mask.sum().to(x.dtype)]))
    count = count.clamp(min=1)
    mean = total / count
    centred = zero_outside(x - mean, mask)
    variance = sum_over_ranks(centred.square().sum()) / count
    whitened = centred * torch.rsqrt(variance + WHITENING_EPS)
    return whitened if shift_mean else zero_outside(whitened + mean, mask)


def last_index(mask: Tensor) -> Tensor:
    """Column of the last True of each row: max{t : m_t}, or −1 for a row without one.

    mask: (B, T) bool, holes allowed, T >= 1. Returns (B,) int64. Raises ValueError for another rank or dtype.
    """
    if mask.dim() != 2 or mask.dtype != torch.bool or mask.shape[1] == 0:
        raise ValueError(f"last_index: expected (B, T) bool, T >= 1, got {tuple(mask.shape)} {mask.dtype}")
    columns = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, columns, -1).amax(dim=1)
