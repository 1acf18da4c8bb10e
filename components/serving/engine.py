"""Answers requests to several models on one thread; the HTTP server and the tests use it alike.

The rule by which models share the machine: in turn, each model with something to do reads up to READ tokens of waiting
prompts and samples one token for each of its running rows. Within a model, prompts are read in the order of arrival. A
row starts if the caches of all fit in memory as they are, with room to grow, not at the longest they could become. A
row gives up its place when the rows together outgrow the memory, or when it has kept others waiting for SLICE tokens:
its text is read again later, and it continues where it was.
"""

import logging
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import torch

from components.generation.generate import NOT_NUMBERS, are_numbers
from components.models.heads import CausalLM
from components.serving.batch import Batch, Reading, shared
from components.serving.choosing import choose
from components.serving.rows import Failed, Request, Row

READ = 512  # tokens of prompts between two tokens of the running rows
SLICE = 256  # tokens that a row samples before it gives its place to one that waits
PREFIXES = 0.25  # of the memory for caches can be for the texts that later prompts may start with
SHARED = 16  # tokens; a prompt that shares more with one that is being read waits, to continue it
log = logging.getLogger(__name__)


class Busy(Exception):
    """The queue is full; seconds: when to try again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; try again in {seconds} s")
        self.seconds = seconds


class Lane:
    """One model's waiting requests, those that are being read, and the running rows."""

    def __init__(self, model: CausalLM, most_rows: int, cache_bytes: float) -> None:
        self.batch = Batch(model, rows=most_rows, prefix_bytes=PREFIXES * cache_bytes)
        self.most_rows = most_rows
        self.most_tokens = (cache_bytes - self.batch.prefix_bytes) / self.batch.bytes_per_token
        self.waiting: deque[Request | Row] = deque()  # a Row has given up its place
        self.reading: tuple[list[list[Row]], Reading] | None = None  # the rows that continue each of the texts

    @property
    def busy(self) -> bool:
        """Whether it has anything to do."""
        return bool(self.waiting or self.reading or any(self.batch.rows))

    def turn(self) -> None:
        """Some tokens of waiting prompts, and one token of every running row."""
        self._drop()
        self._read()
        batch = self.batch
        running = batch.running()
        if not running:
            return
        slots, rows = [slot for slot, _ in running], [row for _, row in running]
        logits = batch.logits[slots]
        finite = are_numbers(logits).tolist()
        for slot, row, scored, good in zip(slots, rows, choose(logits, rows), finite):
            if good:
                self._guarded(row, row.push, scored)
            else:
                fail(row.request, Failed(NOT_NUMBERS.removeprefix("generate: ")))
            if row.finish or row.request.canceled:
                self._leave(slot, row, keep=good and row.index == 0)
        self._make_room()
        self._take_turns()
        batch.advance()

    def _read(self) -> None:
        budget = READ
        while budget > 0:
            if self.reading is None:
                group = self._group()
                if not group:
                    return
                self.reading = group, Reading(self.batch, [rows[0].text for rows in group])
                for rows, cached in zip(group, self.reading[1].cached):
                    if not rows[0].ids:
                        rows[0].request.cached = cached
            group, reading = self.reading
            budget -= reading.advance(budget)
            if reading.done:
                self.reading = None
                self._join(group, reading)

    def _group(self) -> list[list[Row]]:
        """Takes texts from the queue to read together: the first, and those after it that fit in the same turn, as long
        as at most half of the tokens computed are wasted, and no two of them share a long start."""
        group: list[list[Row]] = []
        running = [row for _, row in self.batch.running()]
        new: list[int] = []  # tokens that each has to compute, read alone
        while self.waiting and self._has_place(self.waiting[0], [*running, *(row for rows in group for row in rows)]):
            text = self.waiting[0].text
            known = self.batch.prefixes.longest(text[:-1])[1]
            width = max([len(text) - known, *new])
            if group and (
                width * (len(group) + 1) > min(READ, 2 * (sum(new) + len(text) - known))
                or any(shared(rows[0].text, text) > known + SHARED for rows in group)
            ):
                break
            rows = self._taken()
            if rows:
                group.append(rows)
                new.append(len(text) - known)
        return group

    def _taken(self) -> list[Row]:
        """The rows of the first in the queue; none if its constraint fails."""
        first = self.waiting.popleft()
        if isinstance(first, Row):
            return [first]
        try:
            return [Row(first, index) for index in range(first.options.n)]
        except Exception as error:
            log.exception("a request failed")
            fail(first, Failed(f"{type(error).__name__} while answering; the server's log has more"))
            return []

    def _join(self, group: Sequence[Sequence[Row]], reading: Reading) -> None:
        for held in reading.held():
            self.batch.prefixes.remember(held)
        ready = [(row, place) for place, rows in enumerate(group) for row in rows if not (row.canceled or row.finish)]
        running = [row for _, row in self.batch.running()]
        while ready and not self._has_place(ready[-1][0], [*running, *(row for row, _ in ready[:-1])]):
            self.waiting.appendleft(ready.pop()[0])  # the running rows have grown meanwhile
        for row, _ in ready:
            row.joined = len(row.ids)
        if ready:
            self.batch.join([row for row, _ in ready], reading, [place for _, place in ready])

    def fits(self, rows: int, longest: int) -> bool:
        """Whether `rows` rows can run at once, and fit in memory if the longest of them has `longest` tokens."""
        return rows <= self.most_rows and rows * self.batch.columns(longest) <= self.most_tokens

    def longest(self, rows: int) -> int:
        """The most tokens, prompt and answer together, of `rows` rows that fit in memory."""
        lengths = range(1, self.batch.model.config.longest + 1)
        return bisect_right(lengths, self.most_tokens, key=lambda length: rows * self.batch.columns(length))

    def _has_place(self, one: Request | Row, running: Sequence[Row]) -> bool:
        """Whether a request or a row fits beside running rows."""
        more = 1 if isinstance(one, Row) else one.options.n
        return self.fits(len(running) + more, max(each.length for each in (one, *running)))

    def _make_room(self) -> None:
        """Before the cache grows: the newest rows give up their places until the others fit in memory.

        The oldest request keeps its rows, since `submit` has checked that it fits alone.
        """
        running = sorted(self.batch.running(), key=lambda one: one[1].request.born)
        while running and self.batch.is_full and not self.fits(len(running), max(row.length for _, row in running)):
            slot, row = running.pop()
            self._leave(slot, row, keep=True)
            self.waiting.appendleft(row)

    def _take_turns(self) -> None:
        """If the first in the queue has no place, the rows that have sampled most since they joined queue up behind."""
        running = sorted(self.batch.running(), key=lambda one: one[1].joined - len(one[1].ids))
        tired = [(slot, row) for slot, row in running if len(row.ids) - row.joined >= SLICE]
        if not tired or not self.waiting or self.reading:
            return
        for count in range(len(tired) + 1):
            if self._has_place(self.waiting[0], [row for _, row in running[count:]]):
                for slot, row in tired[:count]:
                    self._leave(slot, row, keep=True)
                    self.waiting.append(row)
                return

    @property
    def running(self) -> int:
        """The number of running rows."""
        return len(self.batch.running())

    @property
    def queued(self) -> int:
        """The number of requests that have not begun."""
        return sum(isinstance(one, Request) for one in tuple(self.waiting))

    def _drop(self) -> None:
        """Removes requests whose client is gone or whose time is over."""
        for one in [one for one in tuple(self.waiting) if one.canceled or one.late]:
            self.waiting.remove(one)
            self._give_up(one, "the request waited longer than the server's time limit")
        for row in [row for rows in (self.reading[0] if self.reading else []) for row in rows if row.late]:
            self._give_up(row, "the prompt took longer than the server's time limit")
        if self.reading and all(row.canceled or row.finish for rows in self.reading[0] for row in rows):
            self.reading = None
        for slot, row in self.batch.running():
            if row.late and not row.canceled:
                self._guarded(row, row.end, "length")
            if row.finish or row.canceled:
                self._leave(slot, row, keep=False)

    def _give_up(self, one: Request | Row, message: str) -> None:
        """Ends what is out of time and not running: an answer that has begun is cut, another one fails."""
        if isinstance(one, Row) and one.ids:
            if not (one.canceled or one.finish):
                self._guarded(one, one.end, "length")
        else:
            fail(one.request if isinstance(one, Row) else one, Failed(message, late=True))

    def _leave(self, slot: int, row: Row, *, keep: bool) -> None:
        self.batch.leave(slot, keep=keep and not row.canceled)

    @staticmethod
    def _guarded(row: Row, act: Callable[..., None], argument: Any) -> None:
        """Ends one request, not all, if its constraint or its client's callback fails."""
        try:
            act(argument)
        except Exception as error:
            log.exception("a request failed")
            fail(row.request, Failed(f"{type(error).__name__} while answering; the server's log has more"))

    def abandon(self, message: str) -> None:
        """Fails every request, after an error that none of them caused alone."""
        read = [row for rows in self.reading[0] for row in rows] if self.reading else []
        rows = [*read, *(row for _, row in self.batch.running())]
        requests = {one.request if isinstance(one, Row) else one for one in (*rows, *self.waiting)}
        self.waiting.clear()
        self.reading = None
        self.batch.clear()
        for request in requests:
            fail(request, Failed(message))


def fail(request: Request, event: Failed) -> None:
    """Delivers the failure unless the client is gone; the request's rows leave at their next token."""
    if not request.canceled:
        request.canceled = True
        with suppress(Exception):  # the client's loop may be closed
            request.deliver(event)


class Engine:
    """Runs models; submit, cancel, call and close can be called from any thread.

    most_rows: rows of one model that decode together; cache_bytes: what the caches of all models can take together.
    most_waiting: requests that wait for their first token, and calls that wait for their turn; more raise Busy.
    """

    def __init__(
        self,
        models: Mapping[str, CausalLM],
        *,
        most_rows: int = 64,
        most_waiting: int = 256,
        cache_bytes: float = float("inf"),
    ) -> None:
        share = cache_bytes / max(1, len(models))
        self.lanes = {name: Lane(model, most_rows, share) for name, model in models.items()}
        self.most_rows, self.most_waiting = most_rows, most_waiting
        self._calls: deque[tuple[Callable[[], Any], Future]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, model: str, request: Request) -> None:
        """Queues a request. Raises Busy if the queue is full, and ValueError for an impossible request."""
        if not request.prompt or len(request.prompt) + request.options.max_tokens > self.room(model):
            raise ValueError(f"expected 1 to {self.room(model)} tokens, prompt and answer together")
        if request.options.n > self.most_rows or request.options.max_tokens < 1:
            raise ValueError(f"expected at most {self.most_rows} samples of at least one token")
        rows = request.options.n
        if not self.lanes[model].fits(rows, request.longest):
            samples, fewer = (f"{rows} samples", " or n") if rows > 1 else ("a sample", "")
            raise ValueError(
                f"{samples} of up to {request.longest} tokens, prompt and answer together, do not fit in memory; "
                f"expected at most {self.longest(model, rows)} tokens. Shorten the prompt, or lower max_tokens{fewer}; "
                "or start the server with a smaller --context, which leaves less room to grow, or on a larger machine"
            )
        with self._changed:
            self._admit()
            self.lanes[model].waiting.append(request)
            self._changed.notify()

    def room(self, model: str) -> int:
        """The model's context in tokens."""
        return self.lanes[model].batch.model.config.longest

    def longest(self, model: str, rows: int) -> int:
        """The most tokens, prompt and answer together, of a request's `rows` samples that fit in memory."""
        return self.lanes[model].longest(rows)

    def call(self, function: Callable[[], Any]) -> Future:
        """Runs a function on the engine's thread between two turns. Raises Busy if the queue is full."""
        future: Future = Future()
        with self._changed:
            self._admit()
            self._calls.append((function, future))
            self._changed.notify()
        return future

    def cancel(self, request: Request) -> None:
        """The request's rows leave before their next token; it delivers nothing more."""
        with self._changed:
            request.canceled = True
            self._changed.notify()

    def waiting(self) -> int:
        """Requests and calls that have not begun."""
        return len(self._calls) + sum(lane.queued for lane in self.lanes.values())

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Ends after the current turn, without waiting for it; what was not answered fails."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def close(self) -> None:
        """Ends after the current turn."""
        self.stop()
        self._thread.join()

    def _admit(self) -> None:
        if self._closed:
            raise Busy(1)
        if self.waiting() >= self.most_waiting:
            raise Busy(1 + self.waiting() // self.most_rows)

    def _run(self) -> None:
        with torch.no_grad():
            while not self._closed:
                with self._changed:
                    self._changed.wait_for(self._has_work)
                    call = self._calls.popleft() if self._calls else None
                if call is not None:
                    self._answer(*call)
                for lane in self.lanes.values():
                    if lane.busy and not self._closed:
                        self._turn(lane)
        for lane in self.lanes.values():
            lane.abandon("the server is shutting down")
        for _, future in self._calls:
            future.cancel()

    def _has_work(self) -> bool:
        return self._closed or bool(self._calls) or any(lane.busy for lane in self.lanes.values())

    @staticmethod
    def _turn(lane: Lane) -> None:
        try:
            lane.turn()
        except Exception as error:  # out of memory, say: the next requests can be answered
            log.exception("a model's turn failed")
            lane.abandon(f"{type(error).__name__} while answering; the server's log has more")

    @staticmethod
    def _answer(function: Callable[[], Any], future: Future) -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)
