"""`attend`: the one place that chooses an attention kernel, and the mask that it needs."""

from collections.abc import Callable
from operator import is_
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from components.models.attention.blockwise import attend_blockwise
from components.models.attention.layout import Layout
from components.models.attention.segments import Segments, attend_segments, segments_of

Mask = Tensor | BlockMask | Segments | None
NARROWEST = 16  # smallest head_dim that FlexAttention's kernels support
_latest: tuple[Layout, bool, Mask] | None = None  # a layout, whether heads are narrow, and their mask


def mask_of(layout: Layout | None, head_dim: int) -> Mask:
    """The mask that `attend` takes for a layout and heads of width head_dim, built once for all layers, and for all
    networks that read the layout one after another. A layout's tensors are not changed in place.

    None: every row is a single causal segment; on a GPU, where finding that out would wait for it, only if there is no
    layout. On CUDA, a FlexAttention block mask, which skips the blocks between documents. On a CPU, where FlexAttention
    has no backward, the segments, each attended to separately. A dense boolean mask (B, 1, T, T) if segments would be
    no faster than that, or if heads are too narrow for FlexAttention.
    """
    global _latest
    if layout is None:
        return None
    narrow, kept = head_dim < NARROWEST, _latest
    if kept is None or kept[1] != narrow or not all(map(is_, kept[0], layout)):
        _latest = kept = layout, narrow, _new_mask(layout, narrow)
    return kept[2]


def _new_mask(layout: Layout, narrow: bool) -> Mask:
    kind = layout.segments.device.type
    if kind == "cpu" and not ((layout.segments > 0) | (layout.parents >= 0)).any():  # a GPU would have to be waited for
        return None  # filler is at the end of a row, where no real token sees it
    if kind == "cuda" and not narrow:
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

    mask None: causal within the row (T = S). Tensor: (B, 1, T, S) bool, True where attention is allowed. Otherwise as
    made by `mask_of`. Returns (B, H, T, D).
    """
    if isinstance(mask, Segments):
        return attend_segments(q, k, v, mask, attend)
    if isinstance(mask, BlockMask):
        return _compiled_flex()(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    on_cpu, grouped = q.device.type == "cpu", q.shape[1] != k.shape[1]
    if grouped and (not on_cpu or q.dtype == torch.bfloat16):
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        grouped = False
    if on_cpu and v.requires_grad:
        v = v.contiguous()  # kept for the backward pass: a view would keep queries and keys before their rotation too
    if on_cpu and q.dtype == torch.bfloat16:
        return attend_blockwise(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)


_flex: Callable[..., Any] | None = None


def _compiled_flex() -> Callable[..., Any]:
    """FlexAttention, compiled once per process; uncompiled it would materialize the full score matrix."""
    global _flex
    if torch.compiler.is_compiling():
        return flex_attention
    if _flex is None:
        _flex = torch.compile(flex_attention, dynamic=True)
    return _flex
