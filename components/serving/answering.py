"""From the engine's thread to the server's loop: the events of a request's prompts, in order of arrival."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from components.serving.api_errors import ApiError
from components.serving.engine import Busy, Engine
from components.serving.rows import Event, Failed, Piece, Request

LOOK = 0.5  # seconds between two looks at whether the client is still there


class Gone(Exception):
    """The client closed the connection."""


def busy(error: Busy) -> ApiError:
    """The queue is full."""
    return ApiError(
        429,
        f"The server is busy: {error}.",
        code="rate_limit_exceeded",
        kind="requests",
        headers={"Retry-After": str(error.seconds)},
    )


class Answering:
    """Requests to one model in progress. Use as a context manager: leaving it cancels what is not finished."""

    def __init__(self, engine: Engine, model: str, is_gone: Callable[[], Awaitable[bool]]) -> None:
        self.engine, self.model, self.is_gone = engine, model, is_gone
        self.requests: list[Request] = []
        self.first_token: float | None = None
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()  # a slow reader holds up nobody

    def deliver_to(self, number: int) -> Callable[[Event], None]:
        """What a request's `deliver` must be; number: the prompt's."""
        return lambda event: self._put((number, event))

    def _put(self, event: tuple[int, Event]) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def start(self, requests: Sequence[Request]) -> None:
        """Submits one request per prompt. Raises ApiError if the queue is full."""
        for request in requests:
            try:
                self.engine.submit(self.model, request)
            except Busy as error:
                self.cancel()
                raise busy(error) from None
            self.requests.append(request)

    def cancel(self) -> None:
        for request in self.requests:
            self.engine.cancel(request)

    def __enter__(self) -> "Answering":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """(prompt, piece) until every sample is finished. Raises ApiError if one fails, Gone if the client left."""
        left = sum(request.options.n for request in self.requests)
        looked = time.monotonic()
        while left:
            try:
                number, event = await asyncio.wait_for(self._events.get(), LOOK)
            except TimeoutError:
                event = None
            if time.monotonic() - looked >= LOOK or event is None:
                looked = time.monotonic()
                if await self.is_gone():
                    raise Gone
            if event is None:
                continue
            if isinstance(event, Failed):
                raise failed(event)
            if self.first_token is None:
                self.first_token = time.monotonic()
            left -= event.finish is not None
            yield number, event


def failed(event: Failed) -> ApiError:
    """The official API's error for a request that the engine gave up."""
    if event.late:
        return ApiError(503, event.message, code="timeout", kind="server_error", headers={"Retry-After": "5"})
    return ApiError(500, event.message, kind="server_error")
