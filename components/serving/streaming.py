"""Server-sent events as the official API sends them."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from components.serving.answering import Gone
from components.serving.api_errors import ApiError

log = logging.getLogger(__name__)


class EventStream(StreamingResponse):
    """Chunks as events, then [DONE]; an error after the start is an event too.

    end: called however the stream ends. named: events have their chunk's type as a name, and no [DONE] follows.
    """

    def __init__(self, chunks: AsyncIterator[Any], end: Callable[[], None], *, named: bool = False) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events(chunks, named), media_type="text/event-stream", headers=headers)
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


async def events(chunks: AsyncIterator[Any], named: bool) -> AsyncIterator[bytes]:
    """The bytes of a stream."""
    try:
        async for chunk in chunks:
            yield (f"event: {chunk['type']}\n".encode() if named else b"") + _event(chunk)
    except Gone:
        return
    except ApiError as error:
        yield _event(error.body())
    except Exception:
        log.exception("a stream failed")
        yield _event(ApiError(500, "The server had an error; its log has more.", kind="server_error").body())
    if not named:
        yield b"data: [DONE]\n\n"


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
