"""Errors as the official API writes them."""

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """The error that a client gets: {"error": {"message", "type", "param", "code"}} with an HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.kind = status, message, code, param, kind
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object of the response."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    """The error for a request that cannot be answered as it is."""
    return ApiError(400, message, param=param, code=code)


def too_long(room: int, prompt: int, answer: int, param: str) -> ApiError:
    """The error for a prompt and answer that exceed the model's context."""
    return invalid(
        f"This model's maximum context length is {room} tokens. However, you requested {prompt + answer} tokens "
        f"({prompt} in the {param}, {answer} in the completion). Reduce the length of the {param} or completion.",
        param,
        "context_length_exceeded",
    )
