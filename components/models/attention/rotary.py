"""Rotary position embeddings."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def rotary_tables(
    positions: Tensor, *, head_dim: int, theta: float, scaling: Mapping[str, Any] | None
) -> tuple[Tensor, Tensor]:
    """(cos, sin), each (B, 1, T, head_dim) fp32, of the angles position · theta^(-2i / head_dim) / slowing; the first
    half of sin is negative, as `rotate` multiplies it.

    scaling: GPTConfig.rope_scaling. Source: Su et al. 2021 (RoFormer), eq. 15; halves paired as (i, i + head_dim/2),
    as Hugging Face's Llama does.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    frequencies = theta**-exponents
    if scaling is not None:
        frequencies = frequencies / slowing(frequencies, scaling)
    angles = positions[:, None, :, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def slowing(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """The divisor of each frequency (radians per token), which keeps the angles in the range of the original context.

    linear: `factor` for all (Chen et al. 2023). llama3: `factor` for frequencies with fewer than low_freq_factor turns
    in the original context, 1 for those with more than high_freq_factor turns; in between, the resulting frequency is
    interpolated linearly in the number of turns (Llama 3.1's release).
    """
    factor = float(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return torch.full_like(frequencies, factor)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return 1 / (kept + (1 - kept) / factor)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x (B, H, T, D) by its positions' angles; computed in fp32, returned in x's dtype."""
    halves_swapped = x.float().roll(x.shape[-1] // 2, dims=-1)
    return (x.float() * cos + halves_swapped * sin).to(x.dtype)
