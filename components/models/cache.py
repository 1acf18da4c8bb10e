"""Keys and values of past tokens: an argument of forward, never hidden state."""

import torch
from torch import Tensor

from components.models.config import GPTConfig


class KVCache:
    """Room for `size` tokens of `batch` sequences, filled from the left.

    Prompts of unequal length are left-padded; `starts` (B,) holds the first real place of every sequence,
    so that place p of row b stands at position p - starts[b] and places before starts[b] are never seen.
    """

    def __init__(self, config: GPTConfig, starts: Tensor, size: int, *, dtype: torch.dtype) -> None:
        shape = (starts.shape[0], config.num_key_value_heads, size, config.head_dim)
        self.keys = [torch.empty(shape, dtype=dtype, device=starts.device) for _ in range(config.num_hidden_layers)]
        self.values = [torch.empty_like(k) for k in self.keys]
        self.starts = starts
        self.length = 0  # tokens held by every sequence, left padding included

    def positions(self, count: int) -> Tensor:
        """(B, count) positions of the next `count` tokens; those of left padding are clamped to 0."""
        places = torch.arange(self.length, self.length + count, device=self.starts.device)
        return (places[None, :] - self.starts[:, None]).clamp_min(0)

    def allowed(self, count: int) -> Tensor:
        """(B, count, length + count) bool: which places the next `count` tokens may attend to.

        A padding place sees itself, so that no row of attention is empty; nothing reads its result.
        """
        total = self.length + count
        seen = torch.arange(total, device=self.starts.device)
        query = seen[self.length :]
        causal = seen[None, :] <= query[:, None]
        real = seen[None, None, :] >= self.starts[:, None, None]
        itself = (seen[None, :] == query[:, None])[None]
        return (causal[None] & real) | itself

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes keys, values (B, H, count, D) of `layer` behind the held ones; returns all (B, H, total, D).

        The caller calls `advance(count)` once every layer has written.
        """
        end = self.length + keys.shape[2]
        if end > self.keys[layer].shape[2]:
            raise ValueError(f"KV cache of {self.keys[layer].shape[2]} places cannot hold {end} tokens")
        self.keys[layer][:, :, self.length : end] = keys
        self.values[layer][:, :, self.length : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, count: int) -> None:
        self.length += count

    def select(self, rows: Tensor) -> None:
        """Keeps (or repeats) the sequences `rows` (N,) int64, in that order."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self.starts = self.starts[rows]
