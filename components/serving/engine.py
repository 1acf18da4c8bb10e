"""Answers requests to several models on one thread; the HTTP server and the tests use it alike.

The rule by which models share the machine: in turn, each model with something to do reads up to READ tokens of waiting
prompts and samples one token for each of its running rows. Within a model, prompts are read in the order of arrival.
"""

import logging
import threading
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
        self.batch = Batch(model, rows=most_rows, prefixes=2 * model.config.longest)
        self.most_rows = most_rows
        self.most_tokens = cache_bytes / self.batch.bytes_per_token
        self.waiting: deque[Request] = deque()
        self.reading: tuple[list[Request], Reading] | None = None

    @property
    def busy(self) -> bool:
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
        batch.advance()

    def _read(self) -> None:
        budget = READ
        while budget > 0:
            if self.reading is None:
                group = self._group()
                if not group:
                    return
                self.reading = group, Reading(self.batch, [request.prompt for request in group])
                for request, cached in zip(group, self.reading[1].cached):
                    request.cached = cached
            group, reading = self.reading
            budget -= reading.advance(budget)
            if reading.done:
                self.reading = None
                self._join(group, reading)

    def _group(self) -> list[Request]:
        """Takes waiting requests to read together: the first, and those after it that fit in the same turn, as long as
        reading them at once computes at most half of its tokens in vain, and none starts as another does."""
        group: list[Request] = []
        running = [row for _, row in self.batch.running()]
        new: list[int] = []  # tokens that each has to compute, read alone
        while self.waiting and self.fits([*group, self.waiting[0]], running):
            prompt = list(self.waiting[0].prompt)
            known = self.batch.prefixes.longest(prompt[:-1])[1]
            width = max([len(prompt) - known, *new])
            if group and (
                width * (len(group) + 1) > min(READ, 2 * (sum(new) + len(prompt) - known))
                or any(shared(list(other.prompt), prompt) > known + SHARED for other in group)
            ):
                break
            group.append(self.waiting.popleft())
            new.append(len(prompt) - known)
        return group

    def _join(self, group: Sequence[Request], reading: Reading) -> None:
        for held in reading.held():
            self.batch.prefixes.remember(held)
        rows: list[Row] = []
        prompts: list[int] = []
        for place, request in enumerate(group):
            if request.canceled:
                continue
            try:
                rows += [Row(request, index) for index in range(request.options.n)]
                prompts += [place] * request.options.n
            except Exception as error:  # of its constraint
                log.exception("a request failed")
                fail(request, Failed(f"{type(error).__name__} while answering; the server's log has more"))
        if rows:
            self.batch.join(rows, reading, prompts)

    def fits(self, requests: Sequence[Request], running: Sequence[Row] = ()) -> bool:
        """Whether there are rows for the requests, and memory for all of them if they become as long as they can."""
        rows = len(running) + sum(request.options.n for request in requests)
        longest = max(one.longest for one in (*requests, *(row.request for row in running)))
        return rows <= self.most_rows and rows * self.batch.columns(longest) <= self.most_tokens

    @property
    def running(self) -> int:
        """The number of running rows."""
        return len(self.batch.running())

    def _drop(self) -> None:
        """Removes requests whose client is gone or whose time is over."""
        for request in [one for one in tuple(self.waiting) if one.canceled or one.late]:
            self.waiting.remove(request)
            fail(request, Failed("the request waited longer than the server's time limit", late=True))
        for request in [one for one in (self.reading[0] if self.reading else []) if one.late]:
            fail(request, Failed("the prompt took longer than the server's time limit", late=True))
        if self.reading and all(request.canceled for request in self.reading[0]):
            self.reading = None
        for slot, row in self.batch.running():
            if row.request.late and not row.request.canceled:
                self._guarded(row, row.end, "length")
            if row.finish or row.request.canceled:
                self._leave(slot, row, keep=False)

    def _leave(self, slot: int, row: Row, *, keep: bool) -> None:
        self.batch.leave(slot, keep=keep and row.finish is not None)

    @staticmethod
    def _guarded(row: Row, act: Callable[..., None], argument: Any) -> None:
        """Ends one request, not all, if its constraint or its client's callback fails."""
        try:
            act(argument)
        except Exception as error:
            log.exception("a request failed")
            fail(row.request, Failed(f"{type(error).__name__} while answering; the server's log has more"))

    def abandon(self, message: str) -> None:
        """Fails every request, after an error that is nobody's own."""
        requests = {row.request for _, row in self.batch.running()} | set(self.waiting)
        requests |= set(self.reading[0]) if self.reading else set()
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

    most_rows: rows of one model that decode together; cache_bytes: what the caches of all models can take together, for
    rows as long as they can become. most_waiting: requests that wait for their first token, and calls
    that wait for their turn; more raise Busy.
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
        if not self.lanes[model].fits([request]):
            raise ValueError(f"{request.options.n} samples of up to {request.longest} tokens do not fit in memory")
        with self._changed:
            self._admit()
            self.lanes[model].waiting.append(request)
            self._changed.notify()

    def room(self, model: str) -> int:
        """The model's context in tokens."""
        return self.lanes[model].batch.model.config.longest

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
        return len(self._calls) + sum(len(lane.waiting) for lane in self.lanes.values())

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
