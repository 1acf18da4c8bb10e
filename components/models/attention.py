"""Rotary positions, and `attend`: the one place that chooses an attention kernel."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from components.models.blockwise import attend_blockwise
from components.models.layout import Layout
from components.models.segments import Segments, attend_segments, segments_of

Mask = Tensor | BlockMask | Segments | None
NARROWEST = 16  # head that FlexAttention's kernels take


def rotary_tables(
    positions: Tensor, *, head_dim: int, theta: float, scaling: Mapping[str, Any] | None
) -> tuple[Tensor, Tensor]:
    """(cos, sin), each (B, 1, T, head_dim) fp32, of the angles position · theta^(-2i / head_dim) / slowing.

    scaling: GPTConfig.rope_scaling. Source: Su et al. 2021 (RoFormer), eq. 15; halves paired as (i, i + head_dim/2),
    as Hugging Face's Llama does.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    frequencies = theta**-exponents
    if scaling is not None:
        frequencies = frequencies / slowing(frequencies, scaling)
    angles = positions[:, None, :, None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def slowing(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """By how much every frequency (radians per token) is divided, so that angles stay those of shorter texts.

    linear: all by `factor` (Chen et al. 2023). llama3: waves that came round fewer than low_freq_factor times in the
    original context by `factor`, those that did more than high_freq_factor times not at all, and in between the
    frequency itself goes over evenly in the number of turns (Llama 3.1's release).
    """
    factor = float(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return torch.full_like(frequencies, factor)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return 1 / (kept + (1 - kept) / factor)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns x (B, H, T, D) by its positions' angles; computed in fp32, returned in x's dtype."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x.float() * cos + turned * sin).to(x.dtype)


def mask_of(layout: Layout | None, head_dim: int) -> Mask:
    """The mask that `attend` wants for a layout and heads of that width, built once per forward for all layers.

    None (one causal segment per row) needs no mask. On CUDA a FlexAttention block mask, which skips the blocks
    between documents, and has no backward on a processor: there the segments, each for itself. A dense boolean mask
    (B, 1, T, T) where rows are too short for segments to pay, and where heads are too narrow for FlexAttention.
    """
    if layout is None or not ((layout.segments > 0) | (layout.parents >= 0)).any():
        return None  # filler stands at a row's end, where nothing that counts sees it
    kind = layout.segments.device.type
    if kind == "cuda" and head_dim >= NARROWEST:
        return _block_mask(layout)
    return (segments_of(layout) if kind == "cpu" else None) or layout.allowed()[:, None]


def _block_mask(layout: Layout) -> BlockMask:
    segments, parents = layout.segments, layout.parents

    def may_attend(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        same = segments[b, i] == segments[b, j]
        continued = (parents[b, i] == segments[b, j]) & (parents[b, i] >= 0)
        return (same | continued) & (j <= i)

    rows, length = segments.shape
    return create_block_mask(may_attend, rows, None, length, length, device=str(segments.device))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """softmax(q·kᵀ / √D)·v under a mask; q (B, H, T, D), k and v (B, Hkv, S, D) with H a multiple of Hkv.

    mask None: causal within the row (T = S). Tensor: (B, 1, T, S) bool, True where attention is allowed.
    """
    if isinstance(mask, Segments):
        return attend_segments(q, k, v, mask, attend)
    if isinstance(mask, BlockMask):
        return _compiled_flex()(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    if q.shape[1] != k.shape[1]:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    if q.dtype == torch.bfloat16 and q.device.type == "cpu":
        return attend_blockwise(q, k, v, mask)
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


_flex: Callable[..., Any] | None = None


def _compiled_flex() -> Callable[..., Any]:
    """FlexAttention compiled once per process; uncompiled it would hold the full score matrix."""
    global _flex
    if torch.compiler.is_compiling():
        return flex_attention
    if _flex is None:
        _flex = torch.compile(flex_attention, dynamic=True)
    return _flex
