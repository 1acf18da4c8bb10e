"""Attention over the segments of packed rows on a CPU: work grows with what tokens attend to, not with the rows.

With a dense mask, every score of a row is computed and those between documents are discarded. Here the segments are
taken out of their rows, batched with others of similar length, attended to batch by batch, and put back. A segment that
continues another (its prompt) gets that one's keys and values before its own, computed once for all that share it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from components.models.attention.layout import FILLER, Layout

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
# The cost of taking a token out and putting it back, and of one more batch, in units of one attention score:
PER_TOKEN, PER_BATCH = 60, 1000


class Batch(NamedTuple):
    """n segments, each padded at its end to `length` tokens.

    slots (n·length,): index of the token in each slot, 0 in padding; padding (p,): the slots that are padding.
    trunks (n,): the segment that each continues, by its row in batch number `trunk`; None if they continue none.
    mask (n, 1, length, trunk's length + length) bool, True where attention is allowed; None: causal.
    """

    length: int
    slots: Tensor
    padding: Tensor
    trunk: int = -1
    trunks: Tensor | None = None
    mask: Tensor | None = None


class Segments(NamedTuple):
    """Batches of the tokens of packed rows.

    tokens (N,): flat index of each token in the rows: the `real` ones, without filler, then padding, if any, whose
    output is left out and which has no gradient. inverse (N,): its slot in the concatenated batches, 0 for padding.
    """

    batches: list[Batch]
    inverse: Tensor
    tokens: Tensor
    real: int

    def padded(self, count: int) -> "Segments":
        """These segments with `tokens` padded to `count` by copies of the rows' first token."""
        more = (0, count - len(self.tokens))
        return self._replace(tokens=F.pad(self.tokens, more), inverse=F.pad(self.inverse, more))


def segments_of(layout: Layout) -> Segments | None:
    """The segments of a layout (on a CPU) in batches, or None if a dense mask is no slower."""
    rows, width = layout.segments.shape
    segments, parents = layout.segments.numpy().ravel(), layout.parents.numpy().ravel()
    keys = np.repeat(np.arange(rows), width) * (width + 1) + segments  # a number for each segment, ascending
    keys[segments == FILLER] = -1
    firsts = np.flatnonzero(np.diff(keys, prepend=-2) != 0)
    lengths = np.diff(firsts, append=keys.size)
    real = segments[firsts] != FILLER
    firsts, lengths = firsts[real], lengths[real]
    continued = parents[firsts]
    parent_keys = keys[firsts] - segments[firsts] + continued
    parent = np.where(continued >= 0, np.searchsorted(keys[firsts], parent_keys), -1)
    steps = _rounded(lengths, least=16)
    batches = _batches(steps, parent)
    tokens = np.flatnonzero(segments != FILLER)
    if _cost(batches, steps, parent, len(tokens)) >= rows * width * width:
        return None
    firsts = np.cumsum(lengths) - lengths  # where they begin without filler
    return _arranged(batches, firsts, lengths, steps, parent, tokens)


def attend_segments(q: Tensor, k: Tensor, v: Tensor, segments: Segments, attention: Attention) -> Tensor:
    """`attention` within segments of tokens in one row: q (1, H, N, D), k and v (1, Hkv, N, D) → (1, H, N, D)."""
    shape = q.shape
    flat = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    parts = [_Take.apply(segments, x) for x in flat]  # type: ignore[no-untyped-call]
    outs = []
    keys: list[tuple[Tensor, Tensor]] = []
    for batch, *own in zip(segments.batches, *parts, strict=True):
        query, key, value = (x.unflatten(0, (-1, batch.length)).transpose(1, 2) for x in own)
        keys.append((key, value))
        if batch.trunks is not None:
            before = [x.index_select(0, batch.trunks) for x in keys[batch.trunk]]
            key, value = torch.cat((before[0], key), dim=2), torch.cat((before[1], value), dim=2)
        outs.append(attention(query, key, value, batch.mask).transpose(1, 2).flatten(0, 1))
    out = _PutBack.apply(segments, *outs)  # type: ignore[no-untyped-call]
    return out.view(shape[0], shape[2], shape[1], shape[3]).transpose(1, 2)


def back_in_rows(x: Tensor, segments: Segments, shape: torch.Size) -> Tensor:
    """Tokens (1, N, D) → rows (B, T, D), 0 on filler. shape: (B, T)."""
    rows = x.new_zeros(shape.numel(), x.shape[-1])
    return rows.index_copy(0, segments.tokens[: segments.real], x[0, : segments.real]).view(*shape, -1)


class _Take(torch.autograd.Function):
    """(N, …) tokens → (n·length, …) for each batch; each token has one slot, so the gradient is a gather as well."""

    @staticmethod
    def forward(ctx: Any, segments: Segments, x: Tensor) -> tuple[Tensor, ...]:
        ctx.segments = segments
        return tuple(x.index_select(0, batch.slots) for batch in segments.batches)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        grad = _joined(grads).index_select(0, ctx.segments.inverse)
        grad[ctx.segments.real :] = 0
        return None, grad


class _PutBack(torch.autograd.Function):
    """The inverse of _Take; the gradient of padding is 0."""

    @staticmethod
    def forward(ctx: Any, segments: Segments, *outs: Tensor) -> Tensor:
        ctx.segments = segments
        return _joined(outs).index_select(0, segments.inverse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        taken = (grad.index_select(0, b.slots).index_fill_(0, b.padding, 0) for b in ctx.segments.batches)
        return None, *taken


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rounded(numbers: np.ndarray, *, least: int) -> np.ndarray:
    """Rounded up to a multiple of a quarter of the power of two below, or of `least` if larger: few sizes, little
    padding.

    Kernels are compiled and cached per shape: a new one costs 0.3 ms and 0.6 MB.
    """
    step = np.maximum(2 ** np.floor(np.log2(np.maximum(numbers - 1, 1))).astype(int) // 4, least)
    return -(-numbers // step) * step


def _batches(steps: np.ndarray, parent: np.ndarray) -> list[np.ndarray]:
    """Segment numbers by batch: equal rounded length, and equal rounded length of the trunks; segments without a trunk
    first."""
    trunk_steps = np.where(parent >= 0, steps[parent], 0)
    kinds, which = np.unique(np.stack([trunk_steps, steps]), axis=1, return_inverse=True)
    return [np.flatnonzero(which.ravel() == kind) for kind in range(kinds.shape[1])]


def _cost(batches: list[np.ndarray], steps: np.ndarray, parent: np.ndarray, tokens: int) -> float:
    """The cost of the batches in attention scores; a causal batch computes about 0.6 of its square."""
    per_token = np.where(parent >= 0, steps[parent] + steps, 0.6 * steps)
    return float((steps * per_token).sum()) + PER_TOKEN * tokens + PER_BATCH * len(batches)


def _arranged(
    batches: list[np.ndarray],
    firsts: np.ndarray,
    lengths: np.ndarray,
    steps: np.ndarray,
    parent: np.ndarray,
    tokens: np.ndarray,
) -> Segments:
    inverse = np.zeros(len(tokens), dtype=np.int64)
    home = np.zeros((2, len(firsts)), dtype=np.int64)  # of every segment: its batch, and its row in that batch
    made: list[Batch] = []
    start = 0
    for number, members in enumerate(batches):
        length = int(steps[members[0]])
        home[0, members], home[1, members] = number, np.arange(len(members))
        count = int(_rounded(np.array([len(members)]), least=1)[0])  # few different shapes
        columns = np.arange(length)
        real = np.zeros((count, length), dtype=bool)
        real[: len(members)] = columns < lengths[members, None]
        slots = np.zeros((count, length), dtype=np.int64)
        slots[: len(members)] = firsts[members, None] + columns
        slots[~real] = 0
        inverse[slots[real]] = start + np.flatnonzero(real)
        start += slots.size
        batch = Batch(length, torch.from_numpy(slots.ravel()), torch.from_numpy(np.flatnonzero(~real)))
        if parent[members[0]] >= 0:
            trunk, rows = home[:, np.resize(parent[members], count)]
            before = np.arange(made[trunk[0]].length) < np.resize(lengths[parent[members]], count)[:, None]
            mask = np.concatenate(
                [
                    np.broadcast_to(before[:, None], (count, length, before.shape[1])),
                    np.broadcast_to(np.tri(length, dtype=bool), (count, length, length)),
                ],
                axis=2,
            )
            batch = batch._replace(
                trunk=int(trunk[0]), trunks=torch.from_numpy(rows), mask=torch.from_numpy(mask[:, None])
            )
        made.append(batch)
    return Segments(made, torch.from_numpy(inverse), torch.from_numpy(tokens), len(tokens))
