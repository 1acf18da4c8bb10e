"""The official API's objects."""

import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

from components.serving.rows import Request, Scored
from components.serving.served import Served

Object = dict[str, Any]


def head(served: Served, kind: str, prefix: str) -> Object:
    """What a reply begins with, whole or in each of its chunks; kind: its object, prefix: of its id."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": served.name,
        "system_fingerprint": served.fingerprint,
    }


class Frames:
    """The chunks of a streamed chat completion. with_usage: each has a usage, null in all but the last."""

    def __init__(self, head: Object, *, with_usage: bool) -> None:
        self.head, self.with_usage = head | {"object": "chat.completion.chunk"}, with_usage

    def chunk(self, index: int, delta: Object, logprobs: Object | None = None, finish: str | None = None) -> Object:
        """A change of one choice."""
        return self._frame([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}])

    def last(self, usage: Object) -> list[Object]:
        """The chunk with the usage, if it was asked for."""
        return [self._frame([]) | {"usage": usage}] if self.with_usage else []

    def _frame(self, choices: list[Any]) -> Object:
        frame = self.head | {"choices": choices}
        return frame | {"usage": None} if self.with_usage else frame


def usage(requests: Sequence[Request], read: int) -> Object:
    """Tokens of the prompts (read) and of all samples, and how many of the prompts' were not computed again."""
    sampled = sum(request.sampled for request in requests)
    return {
        "prompt_tokens": read,
        "completion_tokens": sampled,
        "total_tokens": read + sampled,
        "prompt_tokens_details": {"cached_tokens": sum(request.cached for request in requests)},
    }


def chat_logprobs(served: Served, scored: Iterable[Scored]) -> Object:
    """Logprobs as in chat completions."""

    def one(token: int, logprob: float) -> Object:
        name, content = served.spelled(token)
        return {"token": name, "logprob": _finite(logprob), "bytes": content}

    content = [one(s.token, s.logprob) | {"top_logprobs": [one(*pair) for pair in s.top]} for s in scored]
    return {"content": content, "refusal": None}


def text_logprobs(
    served: Served, scored: Sequence[Scored], *, offset: int = 0, first: int | None = None, top: int = 0
) -> Object:
    """Logprobs as in completions; first: a token before them that has none, the first of a prompt.

    The tokens reported at a position include its own, as the official API does.
    """
    tokens: list[str] = []
    values: list[float | None] = []
    offsets: list[int] = []
    tops: list[dict[str, float] | None] = []
    if first is not None:
        tokens, values, tops = [served.spelled(first)[0]], [None], [None]
    for one in scored:
        name = served.spelled(one.token)[0]
        tokens.append(name)
        values.append(_finite(one.logprob))
        near: dict[str, float] = {}
        for token, logprob in one.top:
            near.setdefault(served.spelled(token)[0], _finite(logprob))
        near.setdefault(name, _finite(one.logprob))
        tops.append(near)
    for name in tokens:
        offsets.append(offset)
        offset += 0 if name.startswith("bytes:") else len(name)
    return {
        "tokens": tokens,
        "token_logprobs": values,
        "top_logprobs": tops if top else None,
        "text_offset": offsets,
    }


def model_object(served: Served) -> Object:
    """An entry of /v1/models; the last four fields are not in the official API."""
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "gradus",
        "kind": "language model" if served.generates else "reward model",
        "stage": served.stage or None,
        "context_length": served.room,
        "parameters": served.model.config.num_parameters(),
    }


def _finite(logprob: float) -> float:
    """JSON has no infinity: a token that cannot be sampled gets the least number that clients expect."""
    return max(logprob, -9999.0)
