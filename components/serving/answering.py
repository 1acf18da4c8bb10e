"""From the engine's thread to the server's loop: the events of a request's prompts, in order of arrival."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from components.serving.api_errors import ApiError, invalid
from components.serving.engine import Busy, Engine
from components.serving.rows import Event, Failed, Piece, Request

LOOK = 0.5  # seconds between two checks that the client is still there


class Gone(Exception):
    """The client closed the connection."""


async def still_there(is_gone: Callable[[], Awaitable[bool]]) -> None:
    """Raises Gone if the client closed the connection."""
    if await is_gone():
        raise Gone


def busy(error: Busy) -> ApiError:
    """The official API's error for a full queue, with the time after which to try again."""
    return ApiError(
        429,
        f"The server is busy: {error}.",
        code="rate_limit_exceeded",
        kind="requests",
        headers={"Retry-After": str(error.seconds)},
    )


class Answering:
    """Requests to one model in progress. Use as a context manager: leaving it cancels what is not finished."""

    def __init__(
        self, engine: Engine, model: str, is_gone: Callable[[], Awaitable[bool]], *, keeps_texts: bool = False
    ) -> None:
        self.engine, self.model, self.is_gone = engine, model, is_gone
        self.requests: list[Request] = []
        self.first_token: float | None = None
        self.texts: dict[tuple[int, int], str] | None = {} if keeps_texts else None  # by prompt and sample
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()  # a slow reader holds up nobody
        self._ahead: tuple[int, Event] | None = None  # taken from the queue, not delivered

    def deliver_to(self, number: int) -> Callable[[Event], None]:
        """What a request's `deliver` must be; number: the prompt's."""
        return lambda event: self._put((number, event))

    def _put(self, event: tuple[int, Event]) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def start(self, requests: Sequence[Request]) -> None:
        """Submits one request per prompt. Raises ApiError if the queue is full or one cannot fit in memory."""
        for request in requests:
            try:
                self.engine.submit(self.model, request)
            except Busy as error:
                self.cancel()
                raise busy(error) from None
            except ValueError as error:
                self.cancel()
                raise invalid(str(error)) from None
            self.requests.append(request)

    def cancel(self) -> None:
        """Ends all of the requests."""
        for request in self.requests:
            self.engine.cancel(request)

    def __enter__(self) -> "Answering":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """(prompt, piece) until every sample is finished. Raises ApiError if one fails, Gone if the client left.

        What came for a sample while the loop was busy is a single piece: under load, sending costs more than sampling.
        """
        left = sum(request.options.n for request in self.requests)
        looked = time.monotonic()
        while left:
            taken = await self._next()
            if time.monotonic() - looked >= LOOK or taken is None:
                looked = time.monotonic()
                await still_there(self.is_gone)
            if taken is None:
                continue
            number, event = taken
            if isinstance(event, Failed):
                raise failed(event)
            if self.first_token is None:
                self.first_token = time.monotonic()
            left -= event.finish is not None
            if self.texts is not None:
                self.texts[number, event.sample] = self.texts.get((number, event.sample), "") + event.text
            yield number, event

    async def _next(self) -> tuple[int, Event] | None:
        """The next event, with the same sample's pieces that follow it at once; None if none came for a while."""
        if self._ahead is None and self._events.empty():
            try:
                self._ahead = await asyncio.wait_for(self._events.get(), LOOK)
            except TimeoutError:
                return None
        taken = self._ahead or self._events.get_nowait()
        self._ahead = None
        while not self._events.empty():
            following = self._events.get_nowait()
            merged = _merged(taken, following)
            if merged is None:
                self._ahead = following
                break
            taken = merged
        return taken


def _merged(one: tuple[int, Event], other: tuple[int, Event]) -> tuple[int, Event] | None:
    """Two pieces of one sample as one; None for anything else."""
    first, second = one[1], other[1]
    if one[0] != other[0] or not isinstance(first, Piece) or not isinstance(second, Piece):
        return None
    if first.sample != second.sample or first.finish:
        return None
    scored = [*first.scored, *second.scored]
    return one[0], Piece(first.sample, first.text + second.text, scored, second.finish)


def failed(event: Failed) -> ApiError:
    """The official API's error for a request that the engine gave up."""
    if event.late:
        return ApiError(503, event.message, code="timeout", kind="server_error", headers={"Retry-After": "5"})
    return ApiError(500, event.message, kind="server_error")
