"""Keys and values of past tokens, and the weights that read them: an argument of forward, never hidden state."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from components.models.attention.attend import attend
from components.models.attention.rotary import rotary_tables
from components.models.config import GPTConfig


class KVCache:
    """Holds up to `size` tokens of each text, filled from the left; CausalLM.new_cache makes one.

    Prompts of unequal length are left-padded; `starts` (B,) holds the column of each sequence's first real token, so
    column c of row b has position c - starts[b], and columns before starts[b] are never attended to.
    On a CPU, keys and values are float32 whatever the products' dtype: attention of a single query is several times
    slower in bfloat16 there.
    """

    def __init__(self, config: GPTConfig, weights: Sequence[Any], head: Tensor, starts: Tensor, size: int) -> None:
        dtype = torch.float32 if starts.device.type == "cpu" else weights[0].qkv.weight.dtype
        shape = (starts.shape[0], config.num_key_value_heads, size, config.head_dim)
        self.config, self.weights, self.head = config, weights, head
        # Zeros, not empty: `Steps` multiplies columns not yet filled by 0, which stale NaN or infinity would survive.
        self.keys = [torch.zeros(shape, dtype=dtype, device=starts.device) for _ in weights]
        self.values = [torch.zeros_like(k) for k in self.keys]
        self.starts = starts.clone()
        self.size = size
        self.length = 0  # tokens held by every sequence, left padding included
        self._rotary: list[Tensor] | None = None
        if config.positions == "rotary":
            positions = torch.arange(size, device=starts.device)[None]
            tables = rotary_tables(
                positions, head_dim=config.head_dim, theta=config.rope_theta, scaling=config.rope_scaling
            )
            self._rotary = [table[0, 0] for table in tables]
        self._mask = torch.empty(0)

    def end_of(self, count: int) -> int:
        """The column after the next `count` tokens. Raises ValueError if there is no room for them."""
        end = self.length + count
        self._check_room(end)
        return end

    def _check_room(self, tokens: int) -> None:
        if tokens > self.size:
            raise ValueError(f"KV cache of size {self.size} cannot hold {tokens} tokens")

    def open(self, count: int) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Prepares for the next `count` tokens: returns their positions (B, count), 0 for left padding, and the
        positions' (cos, sin), each (B, 1, count, head_dim), or None if positions are not rotary. Raises ValueError if
        there is no room."""
        end = self.end_of(count)
        allowed = self._allowed(count)[:, None]
        self._mask = _additive(allowed, self.keys[0].dtype) if count == 1 else allowed
        columns = torch.arange(self.length, end, device=self.starts.device)
        positions = (columns[None, :] - self.starts[:, None]).clamp_min(0)
        return positions, _rotary_at(self._rotary, positions)

    def _allowed(self, count: int) -> Tensor:
        """(B, count, length + count) bool: True on the columns that each of the next `count` tokens can attend to.

        Padding attends to itself, so no row of attention is empty; its result is not used.
        """
        key = torch.arange(self.length + count, device=self.starts.device)
        query = key[self.length :]
        real = key[None, None, :] >= self.starts[:, None, None]
        if count == 1:
            return real  # the last column sees all before it, and is never padding
        causal = key[None, :] <= query[:, None]
        itself = (key[None, :] == query[:, None])[None]
        return (causal[None] & real) | itself

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the tokens passed to `open`, q (B, H, count, D), over the cached tokens and themselves; their k
        and v (B, Hkv, count, D) are appended to those of `layer`. Returns (B, H, count, D)."""
        end = self.length + q.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        if self.length == 0:
            return attend(q, k, v, self._mask)
        keys, values = self.keys[layer][:, :, :end], self.values[layer][:, :, :end]
        if q.shape[2] > 1:
            return attend(q.to(keys.dtype), keys, values, self._mask).to(v.dtype)
        return _attend_one(q, keys, values, self._mask).to(v.dtype)

    def close(self, count: int) -> None:
        """Ends the step that `open` began: every layer has written the `count` tokens."""
        self.length += count

    def select(self, rows: Tensor) -> None:
        """Keeps (or repeats) the sequences `rows` (N,) int64, in that order; empty columns are not copied."""
        self.keys = [self._selected(keys, rows) for keys in self.keys]
        self.values = [self._selected(values, rows) for values in self.values]
        self.starts = self.starts[rows]

    def empty(self, starts: Tensor, size: int) -> "KVCache":
        """A new cache for other texts, as CausalLM.new_cache makes one, that shares this one's weights."""
        return KVCache(self.config, self.weights, self.head, starts, size)

    def put(self, rows: Tensor, other: "KVCache") -> None:
        """Replaces the sequences `rows` (N,) int64 by the N of `other`, a cache made by `empty`: a new prompt takes the
        place of a finished one, with nothing recomputed.

        All sequences end in the same column, so if `other` holds more columns, this cache's move to the right. A
        sequence's tokens keep their positions: what follows them depends on the other rows by rounding alone. In place:
        a captured CUDA graph stays valid. Raises ValueError if `other` holds more tokens than this cache has room for.
        """
        self._check_room(other.length)
        self._shift(max(other.length - self.length, 0))
        first = self.length - other.length
        for mine, theirs in zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True):
            mine.index_fill_(0, rows, 0)  # what was there could be NaN
            mine[rows, :, first : self.length] = theirs[:, :, : other.length]
        self.starts[rows] = other.starts + first

    def trim(self) -> None:
        """Drops the columns that are padding in every row, which makes room for as many new tokens; in place.

        Waits for the device."""
        self._shift(-int(self.starts.min()))

    def _shift(self, columns: int) -> None:
        """Moves all tokens to the right (left if negative)."""
        if columns == 0:
            return
        source, target = max(-columns, 0), max(columns, 0)
        count = self.length - source
        for tensor in (*self.keys, *self.values):
            tensor[:, :, target : target + count] = tensor[:, :, source : self.length].clone()
        self.starts += columns
        self.length += columns

    def _selected(self, tensor: Tensor, rows: Tensor) -> Tensor:
        chosen = tensor.new_zeros((len(rows), *tensor.shape[1:]))
        chosen[:, :, : self.length] = tensor[rows, :, : self.length]
        return chosen


class Steps:
    """A KVCache read and filled one token at a time, with the current column in a device tensor: no shape ever changes.

    So a CUDA graph can capture the step (generation/graph.py). Every step attends to all columns, unfilled ones masked.
    Replaces the cache in forward; the caller advances the cache's own `length`.
    """

    def __init__(self, cache: KVCache) -> None:
        self.weights, self.head = cache.weights, cache.head
        self.keys, self.values, self.starts = cache.keys, cache.values, cache.starts
        self.column = torch.tensor([cache.length], device=cache.starts.device)
        self._rotary, self._mask = cache._rotary, torch.empty(0)

    def open(self, count: int) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """KVCache.open for one token."""
        columns = torch.arange(self.keys[0].shape[2], device=self.column.device)
        allowed = ((columns >= self.starts[:, None]) & (columns <= self.column))[:, None, None]
        self._mask = _additive(allowed, self.keys[0].dtype)
        positions = (self.column - self.starts).clamp_min(0)[:, None]
        return positions, _rotary_at(self._rotary, positions)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """KVCache.attend for one token."""
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(2, self.column, k.to(keys.dtype))
        values.index_copy_(2, self.column, v.to(values.dtype))
        return _attend_one(q, keys, values, self._mask).to(v.dtype)

    def close(self, count: int) -> None:
        """KVCache.close for one token."""
        self.column += 1


def _rotary_at(tables: Sequence[Tensor] | None, positions: Tensor) -> tuple[Tensor, Tensor] | None:
    """(cos, sin), each (B, 1, count, head_dim), of positions (B, count)."""
    if tables is None:
        return None
    cos, sin = (table[positions][:, None] for table in tables)
    return cos, sin


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as attention adds it, 0 or −inf: made once for all layers."""
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, float("-inf"))


def _attend_one(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention of one token, q (B, H, 1, D); query heads that share keys become queries of a single head."""
    query = q.to(keys.dtype).view(keys.shape[0], keys.shape[1], -1, keys.shape[3])
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask).view(q.shape)
