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
    """Room for `size` tokens of each text, filled from the left; CausalLM.new_cache makes one.

    Prompts of unequal length are left-padded; `starts` (B,) holds the first real place of every sequence,
    so that place p of row b stands at position p - starts[b] and places before starts[b] are never seen.
    On a processor keys and values are float32 whatever the products' type: its attention over one query is several
    times as slow in bfloat16.
    """

    def __init__(self, config: GPTConfig, weights: Sequence[Any], head: Tensor, starts: Tensor, size: int) -> None:
        dtype = torch.float32 if starts.device.type == "cpu" else weights[0].qkv.weight.dtype
        shape = (starts.shape[0], config.num_key_value_heads, size, config.head_dim)
        self.weights, self.head = weights, head
        # of zeros: `Steps` multiplies places to come by 0, which numbers left in memory might not survive
        self.keys = [torch.zeros(shape, dtype=dtype, device=starts.device) for _ in weights]
        self.values = [torch.zeros_like(k) for k in self.keys]
        self.starts = starts
        self.size = size
        self.length = 0  # tokens held by every sequence, left padding included
        self._rotary: list[Tensor] | None = None
        if config.positions == "rotary":
            places = torch.arange(size, device=starts.device)[None]
            tables = rotary_tables(
                places, head_dim=config.head_dim, theta=config.rope_theta, scaling=config.rope_scaling
            )
            self._rotary = [table[0, 0] for table in tables]
        self._mask = torch.empty(0)

    def end_of(self, count: int) -> int:
        """The place behind the next `count` tokens. Raises ValueError where there is no room for them."""
        end = self.length + count
        if end > self.size:
            raise ValueError(f"KV cache of {self.size} places cannot hold {end} tokens")
        return end

    def open(self, count: int) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Prepares for the next `count` tokens: their positions (B, count), left padding's clamped to 0, and of those
        (cos, sin), each (B, 1, count, head_dim), where they are rotary. Raises ValueError where there is no room."""
        end = self.end_of(count)
        self._mask = self._allowed(count)[:, None]
        places = torch.arange(self.length, end, device=self.starts.device)
        positions = (places[None, :] - self.starts[:, None]).clamp_min(0)
        return positions, _rotary_at(self._rotary, positions)

    def _allowed(self, count: int) -> Tensor:
        """(B, count, length + count) bool: which places the next `count` tokens may attend to.

        A padding place sees itself, so that no row of attention is empty; nothing reads its result.
        """
        seen = torch.arange(self.length + count, device=self.starts.device)
        query = seen[self.length :]
        real = seen[None, None, :] >= self.starts[:, None, None]
        if count == 1:
            return real  # the last place sees all before it, and is never padding
        causal = seen[None, :] <= query[:, None]
        itself = (seen[None, :] == query[:, None])[None]
        return (causal[None] & real) | itself

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the opened tokens, q (B, H, count, D), over all held ones and themselves, whose k and v
        (B, Hkv, count, D) are written behind those of `layer`."""
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
        """Every layer has written the `count` tokens."""
        self.length += count

    def select(self, rows: Tensor) -> None:
        """Keeps (or repeats) the sequences `rows` (N,) int64, in that order; places still empty are not copied."""
        self.keys, self.values = ([self._selected(one, rows) for one in held] for held in (self.keys, self.values))
        self.starts = self.starts[rows]

    def _selected(self, held: Tensor, rows: Tensor) -> Tensor:
        chosen = held.new_zeros((len(rows), *held.shape[1:]))
        chosen[:, :, : self.length] = held[rows, :, : self.length]
        return chosen


class Steps:
    """A KVCache read and filled by one token at a time, at a place that lies on the device: no shape ever changes.

    So a CUDA graph can hold the step (generation/graph.py). Every step attends to all places, those to come masked.
    Stands for the cache in forward; the cache's own `length` is left to whoever steps.
    """

    def __init__(self, cache: KVCache) -> None:
        self.weights, self.head = cache.weights, cache.head
        self.keys, self.values, self.starts = cache.keys, cache.values, cache.starts
        self.place = torch.tensor([cache.length], device=cache.starts.device)
        self._rotary, self._mask = cache._rotary, torch.empty(0)

    def open(self, count: int) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """As KVCache.open, of one token."""
        seen = torch.arange(self.keys[0].shape[2], device=self.place.device)
        self._mask = ((seen >= self.starts[:, None]) & (seen <= self.place))[:, None, None]
        positions = (self.place - self.starts).clamp_min(0)[:, None]
        return positions, _rotary_at(self._rotary, positions)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(2, self.place, k.to(keys.dtype))
        values.index_copy_(2, self.place, v.to(values.dtype))
        return _attend_one(q, keys, values, self._mask).to(v.dtype)

    def close(self, count: int) -> None:
        self.place += 1


def _rotary_at(tables: Sequence[Tensor] | None, positions: Tensor) -> tuple[Tensor, Tensor] | None:
    """(cos, sin), each (B, 1, count, head_dim), of positions (B, count)."""
    if tables is None:
        return None
    cos, sin = (table[positions][:, None] for table in tables)
    return cos, sin


def _attend_one(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention of one token, q (B, H, 1, D); heads that share keys go as queries of one head."""
    query = q.to(keys.dtype).view(keys.shape[0], keys.shape[1], -1, keys.shape[3])
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask).view(q.shape)
