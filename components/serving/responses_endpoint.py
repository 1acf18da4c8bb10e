"""POST /v1/responses, without state: each request brings its whole conversation, which is answered as a chat."""

import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from components.serving.api_errors import ApiError, invalid
from components.serving.chat_endpoint import started
from components.serving.protocol import ChatAsked, Seed, Strict, Techniques, parsed, validated
from components.serving.replies import Object
from components.serving.service import Service
from components.serving.streaming import EventStream


class ResponseAsked(Strict):
    """The fields that have an effect; seed, top_k and techniques are not in the official API."""

    model: str
    input: str | list[Object]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, lt=2**31)] = 0
    seed: Seed | None = None
    stream: bool = False
    tools: list[Object] = []
    tool_choice: str | Object = "auto"
    parallel_tool_calls: bool = True
    text: Object = {}
    techniques: Techniques = []
    store: Literal[False] = False
    background: Literal[False] = False
    truncation: Literal["disabled"] = "disabled"


async def responses(service: Service, http: HttpRequest) -> Response:
    """Answers a conversation in the shape of the Responses API."""
    born = time.monotonic()
    asked = parsed(await service.body(http), ResponseAsked)
    reply = await started(service, http, as_chat(asked), born)
    made = _Made(asked)
    if asked.stream:
        return EventStream(made.events(reply.chunks()), reply.cancel, named=True)
    return JSONResponse(made.whole(await reply.whole()))


def as_chat(asked: ResponseAsked) -> ChatAsked:
    """The same request to chat completions. Raises ApiError for an item that is not text or a call."""
    messages = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    items = [{"role": "user", "content": asked.input}] if isinstance(asked.input, str) else asked.input
    for number, item in enumerate(items):
        _add(messages, item, f"input[{number}]")
    if not messages:
        raise invalid("input: expected at least one item", "input")
    form = asked.text.get("format") or {"type": "text"}
    unknown = next((name for name in asked.text if name != "format"), None)
    if unknown or not isinstance(form, dict):
        raise invalid(f"text.{unknown or 'format'} is not supported", "text", "unsupported_parameter")
    if form.get("type") == "json_schema":
        form = {"type": "json_schema", "json_schema": {key: value for key, value in form.items() if key != "type"}}
    choice = asked.tool_choice
    if isinstance(choice, dict) and "name" in choice:
        choice = {"type": "function", "function": {"name": choice["name"]}}
    given = {
        "messages": messages,
        "max_tokens": asked.max_output_tokens,
        "tools": [_tool(tool, number) for number, tool in enumerate(asked.tools)],
        "tool_choice": choice,
        "response_format": form,
        "stream_options": {"include_usage": True} if asked.stream else None,
    }
    same = ("model", "temperature", "top_p", "top_k", "seed", "stream", "parallel_tool_calls", "techniques")
    chat: ChatAsked = validated(given | {name: getattr(asked, name) for name in same}, ChatAsked)
    return chat


def _tool(tool: Mapping[str, Any], number: int) -> Object:
    if tool.get("type") != "function":
        message = f"tools[{number}]: expected type 'function'; this server runs no tools of its own"
        raise invalid(message, f"tools[{number}]", "unsupported_parameter")
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _add(messages: list[Object], item: Mapping[str, Any], name: str) -> None:
    """Adds an item of the input to the messages; calls join the assistant's message before them."""
    kind = item.get("type", "message")
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        calls = messages[-1].setdefault("tool_calls", [])
        calls.append({"type": "function", "id": item.get("call_id"), "function": function})
    elif kind == "function_call_output":
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
    elif kind == "message":
        content = item.get("content")
        if isinstance(content, list):
            texts = ("input_text", "output_text")
            parts = [part if isinstance(part, dict) else {} for part in content]
            content = [{"type": "text", "text": p.get("text")} if p.get("type") in texts else p for p in parts]
        messages.append({"role": item.get("role"), "content": content})
    else:
        raise invalid(f"{name}: items of type {kind!r:.40} are not supported", name, "unsupported_parameter")


class _Made:
    """The response object of a chat completion, whole or event by event."""

    def __init__(self, asked: ResponseAsked) -> None:
        self.message = f"msg_{secrets.token_hex(12)}"
        self.head: Object = {
            "id": f"resp_{secrets.token_hex(12)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": asked.model,
            "error": None,
            "incomplete_details": None,
            "metadata": {},
            "previous_response_id": None,
            "text": {"format": asked.text.get("format") or {"type": "text"}},
        }
        same = ("instructions", "max_output_tokens", "temperature", "top_p", "tools", "tool_choice", "store")
        self.head |= {name: getattr(asked, name) for name in (*same, "parallel_tool_calls", "truncation")}

    def whole(self, made: Object) -> Object:
        """The response of a chat completion."""
        [choice] = made["choices"]
        return self._ended(choice["message"], choice["finish_reason"], choice.get("trace"), made["usage"])

    async def events(self, chunks: AsyncIterator[Object]) -> AsyncIterator[Object]:
        """The events of a stream of a chat completion's chunks, the last of which has the usage."""
        number = 0

        def event(kind: str, **fields: Any) -> Object:
            nonlocal number
            number += 1
            return {"type": kind, "sequence_number": number - 1, **fields}

        begun = self.head | {"status": "in_progress", "output": [], "usage": None}
        place = {"item_id": self.message, "output_index": 0, "content_index": 0}
        yield event("response.created", response=begun)
        yield event("response.in_progress", response=begun)
        item = {"type": "message", "id": self.message, "status": "in_progress", "role": "assistant", "content": []}
        yield event("response.output_item.added", output_index=0, item=item)
        yield event("response.content_part.added", **place, part=_part(""))
        text, finish, trace = "", None, None
        usage: Object = {}
        calls: list[Object] = []
        try:
            async for chunk in chunks:
                usage = chunk["usage"]
                for choice in chunk["choices"]:
                    delta = choice["delta"]
                    finish = choice["finish_reason"] or finish
                    trace = delta.get("trace", trace)
                    calls += delta.get("tool_calls", [])
                    if piece := delta.get("content"):
                        text += piece
                        yield event("response.output_text.delta", **place, delta=piece, logprobs=[])
        except ApiError as error:
            yield event("response.failed", response=begun | {"status": "failed", "error": error.body()["error"]})
            return
        ended = self._ended({"content": text, "tool_calls": calls}, finish, trace, usage)
        yield event("response.output_text.done", **place, text=text, logprobs=[])
        yield event("response.content_part.done", **place, part=_part(text))
        for index, one in enumerate(ended["output"]):
            if index:
                yield event("response.output_item.added", output_index=index, item=one | {"arguments": ""})
                called, arguments = {"item_id": one["id"], "output_index": index}, one["arguments"]
                yield event("response.function_call_arguments.delta", **called, delta=arguments)
                yield event("response.function_call_arguments.done", **called, arguments=arguments, name=one["name"])
            yield event("response.output_item.done", output_index=index, item=one)
        yield event(f"response.{ended['status']}", response=ended)

    def _ended(self, message: Object, finish: str | None, trace: list[Object] | None, used: Object) -> Object:
        cut = finish == "length"
        status = "incomplete" if cut else "completed"
        content = [_part(message["content"] or "")]
        output: list[Object] = [
            {"type": "message", "id": self.message, "status": status, "role": "assistant", "content": content}
        ]
        for call in message.get("tool_calls") or []:
            made = {"id": f"fc_{secrets.token_hex(12)}", "call_id": call["id"], "status": "completed"}
            output.append({"type": "function_call", **made, **call["function"]})
        usage = {
            "input_tokens": used["prompt_tokens"],
            "input_tokens_details": used["prompt_tokens_details"],
            "output_tokens": used["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used["total_tokens"],
        }
        details = {"reason": "max_output_tokens"} if cut else None
        ended = {"status": status, "output": output, "usage": usage, "incomplete_details": details}
        return self.head | ended | ({} if trace is None else {"trace": trace})


def _part(text: str) -> Object:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
