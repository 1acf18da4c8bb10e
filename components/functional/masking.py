"""Statistics over the entries where a mask is True; the other entries, NaN included, have no effect."""

from collections.abc import Callable

import torch
from torch import Tensor

from components.functional.shapes import at_least_float32, same_shape_as_mask

WHITENING_EPS = 1e-8


def zero_outside(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is True, 0 elsewhere, in at least float32.

    Apply it before any other arithmetic on x: multiplying by the mask afterwards gives NaN·0 = NaN, in values
    and in gradients. x, mask: same shape. Raises ValueError if shapes differ or the mask is not bool.
    """
    same_shape_as_mask("zero_outside", mask, x=x)
    return torch.where(mask, at_least_float32(x), 0.0)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over all entries where the mask is True: Σ m·x / Σ m, and 0 if there are none.

    x, mask: same shape, any rank. Returns a scalar in the unit of x.
    Raises ValueError if shapes differ or the mask is not bool.
    """
    same_shape_as_mask("masked_mean", mask, x=x)
    return zero_outside(x, mask).sum() / mask.sum().clamp(min=1)


def row_means(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row of x where the mask is True: Σ_t m·x / Σ_t m, and 0 for a row without such entries.

    x, mask: (B, T). Returns (B,) in the unit of x. Raises ValueError if shapes differ or the mask is not bool.
    """
    same_shape_as_mask("row_means", mask, x=x)
    return zero_outside(x, mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def masked_whiten(
    x: Tensor, mask: Tensor, *, shift_mean: bool, sum_over_ranks: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    """x scaled to unit variance where the mask is True: (x − μ)·rsqrt(σ² + 1e-8), plus μ unless shift_mean.

    μ and σ² are the mean and the biased variance over all entries where the mask is True. sum_over_ranks sums
    a tensor over all processes, so every rank whitens by the same statistics; a single process leaves it out.
    x, mask: same shape, any rank. Returns the same shape, unitless, 0 where the mask is False.
    Raises ValueError if shapes differ or the mask is not bool.
    Source: Huang et al. 2024, "The N implementation details of RLHF with PPO", whitening.
    """
    same_shape_as_mask("masked_whiten", mask, x=x)
    x = zero_outside(x, mask)
    total, count = sum_over_ranks(torch.stack([x.sum(), mask.sum().to(x.dtype)]))
    count = count.clamp(min=1)
    mean = total / count
    centered = zero_outside(x - mean, mask)
    variance = sum_over_ranks(centered.square().sum()) / count
    whitened = centered * torch.rsqrt(variance + WHITENING_EPS)
    return whitened if shift_mean else zero_outside(whitened + mean, mask)


def last_index(mask: Tensor) -> Tensor:
    """Column of the last True of each row: max{t : m_t}, or −1 for a row without one.

    mask: (B, T) bool, holes allowed, T >= 1. Returns (B,) int64. Raises ValueError for any other shape or dtype.
    """
    if mask.dim() != 2 or mask.dtype != torch.bool or mask.shape[1] == 0:
        raise ValueError(f"last_index: expected (B, T) bool, T >= 1, got {tuple(mask.shape)} {mask.dtype}")
    columns = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, columns, -1).amax(dim=1)


def true_places(mask: Tensor) -> Tensor:
    """(n,) int64: the flat indices at which a mask of any shape is True, in order.

    Its shape depends on the data, for which a GPU's host has to wait: indices for a loss are made with the batch.
    """
    return mask.flatten().nonzero().squeeze(1)
