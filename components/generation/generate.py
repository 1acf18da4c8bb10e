"""Batched and streaming generation, on token ids alone."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from components.functional.host_copy import HostCopy
from components.functional.sampling import filter_logits, sample_at, shares
from components.functional.shapes import dtype_of_products
from components.generation.graph import Step, step_of
from components.models.attention.kv_cache import KVCache
from components.models.heads import CausalLM
from components.system.limits import Count, NonNegative

ONE_THREAD = 2e7  # multiplications per step; below it one thread is faster than two (4M parameters, one row: by 30%)
# Finished rows leave the batch when at most this share is left: it copies the cache and, on a GPU, captures the graph.
LEAVE = {"cpu": 0.75, "cuda": 0.5, "mps": 0.75}
REFILL = 1 / 8  # share of the rows that must be finished before waiting prompts are read: together, that is faster
NOT_NUMBERS = (
    "generate: the model's logits are not numbers (NaN or infinite). Its training diverged, or they overflow in this "
    "precision. Try trainer.precision=32-true, or a model from before it diverged"
)


class Sampling(NamedTuple):
    """How to sample tokens. temperature 0 takes the likeliest; top_k 0 and top_p 1 keep the whole vocabulary."""

    max_new_tokens: Count
    temperature: NonNegative = 1.0
    top_k: int = 0
    top_p: float = 1.0


class Samples(NamedTuple):
    """Sampled responses, one per row, grouped by prompt.

    ids (N, R) int64; mask (N, R) bool, True on sampled tokens, the stop token included;
    finished (N,) bool, True if a stop token was sampled within max_new_tokens.
    """

    ids: Tensor
    mask: Tensor
    finished: Tensor

    def responses(self) -> list[list[int]]:
        """The sampled ids of every row, the stop token included."""
        return [row[keep].tolist() for row, keep in zip(self.ids.cpu(), self.mask.cpu(), strict=True)]


@torch.no_grad()
def generate(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_ids: Collection[int],
    pad_id: int,
    generator: torch.Generator,
    samples_per_prompt: int = 1,
    width: int | None = None,
) -> Samples:
    """Continues every prompt until a stop token or max_new_tokens; prompts can differ in length.

    Each prompt is read once, for all samples_per_prompt; finished rows leave the batch. width: the most responses that
    are sampled at a time; the others wait, and take the rows of those that finish. A response then depends on the
    generator and its own number alone, whatever the width, up to rounding; with width None, also on when other rows
    leave. generator must be on the model's device.
    Raises ValueError for an empty prompt, a prompt without room for max_new_tokens in the model's context, and logits
    that are not finite.
    """
    _check_room(model, prompts, sampling)
    total = len(prompts) * samples_per_prompt
    with threads_for(model, min(total, width or total)):
        if width is None:
            return _generate(model, prompts, sampling, stop_ids, pad_id, generator, samples_per_prompt)
        waiting = _Waiting(prompts, samples_per_prompt, pad_id)
        return _refilled(model, waiting, sampling, stop_ids, generator, min(total, width))


def _generate(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Collection[int],
    pad_id: int,
    generator: torch.Generator,
    samples_per_prompt: int,
) -> Samples:
    device = next(model.parameters()).device
    ids, starts = _left_pad(prompts, pad_id, device)
    total = len(prompts) * samples_per_prompt
    cache = model.new_cache(starts, ids.shape[1] + sampling.max_new_tokens, dtype=compute_dtype(model), rows=total)
    logits = model.next_logits(ids, cache)
    if samples_per_prompt > 1:
        rows = torch.arange(len(prompts), device=device).repeat_interleave(samples_per_prompt)
        cache.select(rows)
        logits = logits[rows]
    sampled = torch.full((total, sampling.max_new_tokens), pad_id, device=device)
    mask = torch.zeros_like(sampled, dtype=torch.bool)
    stops = torch.tensor(sorted(stop_ids), device=device)
    rows = torch.arange(total, device=device)  # the response that each row of the cache continues
    alive = torch.ones(total, dtype=torch.bool, device=device)  # by row of the cache: no stop token yet
    finished = torch.zeros_like(alive)
    finite = torch.ones((), dtype=torch.bool, device=device)  # all logits so far; read once, at the end
    unfinished = Unfinished(total, late=device.type != "cpu")
    advance: Step | None = None
    for step in range(sampling.max_new_tokens):
        finite &= are_numbers(logits).all()
        token = pick(logits, sampling, generator)
        sampled[rows, step] = torch.where(alive, token, pad_id)
        mask[rows, step] = alive
        stopped = alive & (token[:, None] == stops).any(1)
        finished[rows] |= stopped
        alive &= ~stopped
        remaining = unfinished.count(alive)
        if not remaining or step + 1 == sampling.max_new_tokens:
            break
        if remaining <= LEAVE[device.type] * len(rows):
            kept = alive.nonzero().squeeze(1)
            if not len(kept):  # the count was late
                break
            cache.select(kept)
            rows, token, alive = rows[kept], token[kept], alive[kept]
            advance = None  # it held the cache's old rows
        advance = advance or step_of(model, cache)
        logits = advance(token)
    if not finite:
        raise ValueError(NOT_NUMBERS)
    width = int(mask.any(0).sum())
    return Samples(sampled[:, :width], mask[:, :width], finished)


class _Waiting:
    """Responses that have not begun, in the order of their numbers: those to one prompt follow each other."""

    def __init__(self, prompts: Sequence[Sequence[int]], samples_per_prompt: int, pad_id: int) -> None:
        self.prompts, self.each, self.pad_id = prompts, samples_per_prompt, pad_id
        self.total = len(prompts) * samples_per_prompt
        self.begun = 0

    def __bool__(self) -> bool:
        return self.begun < self.total

    def read(self, model: CausalLM, cache: KVCache, count: int) -> tuple[Tensor, KVCache, Tensor]:
        """Begins the next responses, at most `count`: their numbers (N,), a cache of their prompts on the weights of
        `cache`, and logits (N, V). A prompt is read once for all of them."""
        device = cache.starts.device
        numbers = torch.arange(self.begun, min(self.begun + count, self.total), device=device)
        self.begun += len(numbers)
        first, last = int(numbers[0]) // self.each, int(numbers[-1]) // self.each
        ids, starts = _left_pad(self.prompts[first : last + 1], self.pad_id, device)
        read = cache.empty(starts, ids.shape[1])
        logits = model.next_logits(ids, read)
        rows = numbers // self.each - first
        if len(rows) > len(starts):
            read.select(rows)
            logits = logits[rows]
        return numbers, read, logits


class _Responses:
    """What has been sampled, by response (N, R)."""

    def __init__(self, total: int, limit: int, pad_id: int, stops: Tensor) -> None:
        self.limit, self.stops = limit, stops
        self.ids = torch.full((total, limit + 1), pad_id, device=stops.device)  # rows that ended write to the last
        self.mask = torch.zeros_like(self.ids, dtype=torch.bool)
        self.finished = torch.zeros(total, dtype=torch.bool, device=stops.device)

    def add(self, rows: Tensor, count: Tensor, token: Tensor, alive: Tensor) -> Tensor:
        """Adds token (B,) to the responses rows (B,), which have `count` (B,), if they are alive (B,); returns which
        still are."""
        column = torch.where(alive, count, self.limit)
        self.ids[rows, column], self.mask[rows, column] = token, alive
        stopped = alive & (token[:, None] == self.stops).any(1)
        self.finished[rows] |= stopped
        return alive & ~stopped & (count + 1 < self.limit)

    def samples(self) -> Samples:
        longest = int(self.mask[:, : self.limit].any(0).sum())
        return Samples(self.ids[:, :longest], self.mask[:, :longest], self.finished)


def _refilled(
    model: CausalLM,
    waiting: _Waiting,
    sampling: Sampling,
    stop_ids: Collection[int],
    generator: torch.Generator,
    width: int,
) -> Samples:
    """`_generate` in `width` rows. Waits for the device at every step.

    Token t of response r is sampled with element (t, r) of uniform shares that are made beforehand.
    """
    device, limit = next(model.parameters()).device, sampling.max_new_tokens
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    cache = model.new_cache(nothing, 1, dtype=compute_dtype(model), rows=width)
    room = max(map(len, waiting.prompts)) + limit
    cache = cache.empty(nothing.new_zeros(width), room + room // 4)  # room to spare: trimming copies the cache
    share = shares(limit, waiting.total, device=device, generator=generator)
    stops = torch.tensor(sorted(stop_ids), device=device)
    responses = _Responses(waiting.total, limit, waiting.pad_id, stops)
    # By row of the cache: its response, the number of tokens sampled for it, and whether it continues.
    rows, read, logits = waiting.read(model, cache, width)
    cache.put(torch.arange(width, device=device), read)
    count, alive = torch.zeros_like(rows), torch.ones_like(rows, dtype=torch.bool)
    finite = torch.ones((), dtype=torch.bool, device=device)
    advance: Step | None = None
    while True:
        finite &= are_numbers(logits).all()
        token = pick_at(logits, sampling, share[count.clamp(max=limit - 1), rows])
        alive = responses.add(rows, count, token, alive)
        count += 1
        free = (~alive).nonzero().squeeze(1)
        going = len(rows) - len(free)
        if not going and not waiting:
            break
        if not waiting and going <= LEAVE[device.type] * len(rows):
            kept = alive.nonzero().squeeze(1)
            cache.select(kept)
            rows, token, count, alive, free = rows[kept], token[kept], count[kept], alive[kept], kept[:0]
            advance = None  # it held the cache's old rows
        cache.starts[free] = cache.length  # they hold no columns, and read their next token alone
        if cache.length == cache.size:
            cache.trim()
        if going:
            advance = advance or step_of(model, cache)
            logits = advance(token)
        if waiting and len(free) >= REFILL * len(rows):
            numbers, read, their_logits = waiting.read(model, cache, len(free))
            free = free[: len(numbers)]
            cache.put(free, read)
            logits = logits.index_copy(0, free, their_logits)
            rows[free], count[free], alive[free] = numbers, 0, True
    if not finite:
        raise ValueError(NOT_NUMBERS)
    return responses.samples()


class Unfinished:
    """Counts the rows without a stop token. late: the count is that of the step before, already on its way to the CPU,
    so that reading it does not wait for the step just launched; at first it is `total`.

    A late count lets rows leave, and generation end, one step later.
    """

    def __init__(self, total: int, *, late: bool) -> None:
        self._total, self._late = total, late
        self._before: HostCopy | None = None

    def count(self, alive: Tensor) -> int:
        """How many of alive (B,) bool are True; if late, how many were at the previous call."""
        if not self._late:
            return int(alive.sum())
        before, self._before = self._before, HostCopy(alive.sum())
        return self._total if before is None else int(before.read())


@contextmanager
def threads_for(model: CausalLM, rows: int) -> Iterator[None]:
    """Uses one thread if a step's products are so small that several threads would mostly wait for each other."""
    before = torch.get_num_threads()
    if next(model.parameters()).device.type == "cpu" and rows * model.config.num_parameters() < ONE_THREAD:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def stream(
    model: CausalLM,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    stop_ids: Collection[int],
    generator: torch.Generator,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[int]:
    """Yields one prompt's continuation token by token; a stop token ends it and is not yielded.

    Raises ValueError as `generate` does.
    """
    _check_room(model, [prompt], sampling)
    device = next(model.parameters()).device
    ids, starts = _left_pad([prompt], 0, device)
    cache = model.new_cache(starts, ids.shape[1] + sampling.max_new_tokens, dtype=compute_dtype(model))
    with threads_for(model, 1):
        logits = model.next_logits(ids, cache)
    advance = step_of(model, cache)
    for remaining in reversed(range(sampling.max_new_tokens)):
        token = pick(logits, sampling, generator)
        token_id = int(torch.where(are_numbers(logits), token, -1))  # a single synchronization with the device
        if token_id < 0:
            raise ValueError(NOT_NUMBERS)
        if token_id in stop_ids or should_stop():
            return
        yield token_id
        if remaining:
            with threads_for(model, 1):
                logits = advance(token)


def are_numbers(logits: Tensor) -> Tensor:
    """(B,) bool of logits (B, V): True if the largest logit is finite, so the row can be sampled from."""
    return logits.amax(1).isfinite()


def pick(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """One token (B,) int64 for every row of logits (B, V); an arbitrary token for a row with NaN or infinite logits."""
    if _is_greedy(sampling):
        return logits.argmax(-1)
    return pick_at(logits, sampling, shares(len(logits), device=logits.device, generator=generator))


def pick_at(logits: Tensor, sampling: Sampling, share: Tensor) -> Tensor:
    """`pick` by given randomness, as `sample_at` takes it: (B,), one per row."""
    if _is_greedy(sampling):
        return logits.argmax(-1)
    scaled = logits.float() - logits.amax(1, keepdim=True)  # so a low temperature overflows only to −inf
    kept = filter_logits(scaled, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
    return sample_at(kept, share).clamp(max=logits.shape[1] - 1)  # for NaN, it returns one past the vocabulary


def _is_greedy(sampling: Sampling) -> bool:
    return sampling.temperature < torch.finfo(torch.float32).tiny  # too small to divide by


def _check_room(model: CausalLM, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ValueError("generate: expected at least one prompt, and no empty prompt")
    longest = max(map(len, prompts)) + sampling.max_new_tokens
    room = model.config.longest
    if longest > room:
        raise ValueError(
            f"generate: a prompt of {longest - sampling.max_new_tokens} tokens + {sampling.max_new_tokens} new ones "
            f"exceeds the model's context of {room} tokens; shorten the prompt or lower max_new_tokens"
        )


def _left_pad(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids (B, T), starts (B,) the column of each prompt's first token): prompts end in the last column."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    return ids, torch.tensor([width - len(p) for p in prompts], device=device)


def compute_dtype(model: CausalLM) -> torch.dtype:
    """The dtype of products: autocast's if it is on, else that of the weights."""
    return dtype_of_products(next(model.parameters()))
