"""Rows of one model that decode together on one KV cache; they join and leave between tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from components.generation.generate import compute_dtype, threads_for
from components.generation.graph import Step, step_of
from components.models.attention.kv_cache import KVCache
from components.models.heads import CausalLM
from components.serving.rows import Row

LEAVE = 0.75  # the batch shrinks when at most this share of its slots is taken: that copies the cache
ROOM = 64  # columns that a cache has at least for tokens to come


class Held(NamedTuple):
    """Keys and values of a text, by layer, each (Hkv, T, D)."""

    ids: list[int]
    keys: list[Tensor]
    values: list[Tensor]


class Prefixes:
    """The texts computed last, up to `capacity` tokens in all: a prompt that starts like one of them continues it."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._texts: list[Held] = []  # the one used last at the end

    def longest(self, ids: Sequence[int]) -> tuple[Held | None, int]:
        """The text that shares the longest start with `ids`, and the number of tokens shared."""
        best, place = 0, -1
        for number, held in enumerate(self._texts):
            if (count := shared(held.ids, ids)) > best:
                best, place = count, number
        if place < 0:
            return None, 0
        self._texts.append(self._texts.pop(place))
        return self._texts[-1], best

    def remember(self, held: Held) -> None:
        """Adds a text, in place of those it starts with; the least recently used ones go."""
        if len(held.ids) > self.capacity:
            return
        kept = [text for text in self._texts if held.ids[: len(text.ids)] != text.ids]
        total = sum(len(text.ids) for text in kept) + len(held.ids)
        while total > self.capacity:
            total -= len(kept.pop(0).ids)
        self._texts = [*kept, held]

    def clear(self) -> None:
        self._texts = []


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens with which both start, by bisection."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


class Reading:
    """Prompts being read together, some columns at a time; logits (N, V) once all are.

    cached: for each prompt, its tokens before the first column that one of them needs: an earlier text has them.
    """

    def __init__(self, batch: "Batch", prompts: Sequence[Sequence[int]]) -> None:
        self.batch, self.prompts = batch, [list(prompt) for prompt in prompts]
        self.logits = torch.empty(0)
        self.width = max(map(len, prompts))
        self.starts = [self.width - len(prompt) for prompt in prompts]
        self.cache = batch.new_cache(len(prompts), self.width)
        self.cache.starts.copy_(torch.tensor(self.starts))
        found = [batch.prefixes.longest(prompt[:-1]) for prompt in self.prompts]  # the last is read for its logits
        first = min(start + count for start, (_, count) in zip(self.starts, found))
        self.cached = [max(0, first - start) for start in self.starts]
        for row, ((held, _), count) in enumerate(zip(found, self.cached)):
            if held is not None and count:
                for mine, theirs in zip([*self.cache.keys, *self.cache.values], [*held.keys, *held.values]):
                    mine[row, :, first - count : first] = theirs[:, :count]
        self.cache.length = first

    def advance(self, most: int) -> int:
        """Reads about `most` tokens of all prompts together; returns how many."""
        begin = self.cache.length
        end = min(self.width, begin + max(1, most // len(self.prompts)))
        padded = [
            [0] * max(0, start - begin) + prompt[max(0, begin - start) : max(0, end - start)]
            for start, prompt in zip(self.starts, self.prompts)
        ]
        tokens = torch.tensor([row[: end - begin] for row in padded], device=self.batch.device)
        self.logits = self.batch.model.next_logits(tokens, self.cache).float()
        return (end - begin) * len(self.prompts)

    @property
    def done(self) -> bool:
        """Whether all prompts have been read."""
        return self.cache.length == self.width

    def held(self) -> list[Held]:
        """The prompts, to be remembered."""
        made = []
        for row, (prompt, start) in enumerate(zip(self.prompts, self.starts)):
            keys, values = (
                [t[row, :, start:].clone() for t in tensors] for tensors in (self.cache.keys, self.cache.values)
            )
            made.append(Held(prompt, keys, values))
        return made


class Batch:
    """The running rows of a model, each in a slot of the cache; None is an empty slot.

    A row that joins is aligned to the right: its last token is in the cache's last column, like everyone's. The cache
    is copied only when it has no slot or no column left, or many slots are empty.
    rows: the most that decode together. prefix_bytes: the memory that Prefixes can take; it keeps at most twice the
    context.
    """

    def __init__(self, model: CausalLM, *, rows: int, prefix_bytes: float) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.rows: list[Row | None] = []
        self.logits = torch.empty(0)
        nothing = torch.zeros(0, dtype=torch.int64, device=self.device)
        # the weights, copied only once, in the layout for steps of `rows` rows
        self._weights_of = model.new_cache(nothing, 1, dtype=compute_dtype(model), rows=rows)
        self._cache = self._weights_of
        self._step: Step | None = None
        self.prefixes = Prefixes(int(min(2 * model.config.longest, prefix_bytes / self._bytes_per_kept_token)))

    def new_cache(self, rows: int, size: int) -> KVCache:
        """An empty cache with the model's weights."""
        return self._weights_of.empty(torch.zeros(rows, dtype=torch.int64, device=self.device), size)

    def columns(self, used: int) -> int:
        """The columns of a cache for texts of `used` tokens so far, with room for more."""
        return min(used + used // 2, self.model.config.longest) + ROOM

    @property
    def bytes_per_token(self) -> int:
        """Bytes of a token's keys and values, twice, since a cache that grows is copied."""
        return 2 * self._bytes_per_kept_token

    @property
    def prefix_bytes(self) -> int:
        """Bytes of the prefixes at their most."""
        return self.prefixes.capacity * self._bytes_per_kept_token

    @property
    def _bytes_per_kept_token(self) -> int:
        tensors, config = self._tensors(self._weights_of), self.model.config
        return len(tensors) * config.num_key_value_heads * config.head_dim * tensors[0].element_size()

    def running(self) -> list[tuple[int, Row]]:
        """The rows with their slots."""
        return [(slot, row) for slot, row in enumerate(self.rows) if row is not None]

    @property
    def is_full(self) -> bool:
        """Whether the cache has to grow for the next token."""
        return self._cache.length == self._cache.size

    def join(self, rows: Sequence[Row], reading: Reading, prompts: Sequence[int]) -> None:
        """Adds rows that continue prompts that have been read; prompts: for each row, the index of its own."""
        empty = [slot for slot, row in enumerate(self.rows) if row is None]
        if len(empty) < len(rows) or reading.width > self._cache.size:
            self._rebuild(len(rows), reading.width)
            empty = [slot for slot, row in enumerate(self.rows) if row is None]
        slots = empty[: len(rows)]
        if list(prompts) != list(range(len(reading.prompts))):
            reading.cache.select(torch.tensor(prompts, device=self.device))
        self._cache.put(torch.tensor(slots, device=self.device), reading.cache)
        self.logits[slots] = reading.logits[list(prompts)]
        for slot, row in zip(slots, rows):
            self.rows[slot] = row

    def leave(self, slot: int, *, keep: bool) -> None:
        """Empties a slot; keep: remember its text, since a next turn of the conversation starts with it."""
        row = self.rows[slot]
        assert row is not None
        if keep:
            end, count = self._cache.length, len(row.request.prompt) + max(0, len(row.ids) - 1)
            ids = [*row.request.prompt, *row.ids][:count]
            parts = [tensor[slot, :, end - count : end].clone() for tensor in self._tensors(self._cache)]
            self.prefixes.remember(Held(ids, parts[: len(parts) // 2], parts[len(parts) // 2 :]))
        self.rows[slot] = None

    def advance(self) -> None:
        """Feeds every row's last token: `logits` are those of the next."""
        running = self.running()
        if len(running) <= LEAVE * len(self.rows) or self.is_full:
            self._rebuild(0, 0)
        if not self.rows:
            return
        empty = [slot for slot, row in enumerate(self.rows) if row is None]
        self._cache.starts[empty] = self._cache.length  # they stay at position 0
        tokens = torch.tensor([row.ids[-1] if row else 0 for row in self.rows], device=self.device)
        self._step = self._step or step_of(self.model, self._cache)
        with threads_for(self.model, len(self.rows)):
            self.logits = self._step(tokens).float()

    def clear(self) -> None:
        """Removes all rows and texts."""
        self.prefixes.clear()
        self.rows, self._cache, self._step, self.logits = [], self._weights_of, None, torch.empty(0)

    def _rebuild(self, more: int, longest: int) -> None:
        """A cache with slots for the running rows and `more`, whose texts have at most `longest` tokens; columns that
        only rows that have left used are dropped."""
        old, slots = self._cache, [slot for slot, _ in self.running()]
        lengths = old.length - old.starts[slots]
        most = int(lengths.max()) if slots else 0
        used = max(most, longest)
        cache = self.new_cache(len(slots) + more, self.columns(used))
        cache.length = used
        cache.starts.fill_(used)
        cache.starts[: len(slots)] = used - lengths
        logits = torch.zeros(len(slots) + more, self.model.config.vocab_size, device=self.device)
        if slots:
            for mine, theirs in zip(self._tensors(cache), self._tensors(old)):
                mine[: len(slots), :, used - most : used] = theirs[slots, :, old.length - most : old.length]
            logits[: len(slots)] = self.logits[slots]
        self.rows = [self.rows[slot] for slot in slots] + [None] * more
        self._cache, self._step, self.logits = cache, None, logits

    @staticmethod
    def _tensors(cache: KVCache) -> list[Tensor]:
        return [*cache.keys, *cache.values]
