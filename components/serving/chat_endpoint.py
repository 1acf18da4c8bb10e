"""POST /v1/chat/completions."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from components.serving.answering import Answering
from components.serving.api_errors import invalid
from components.serving.calls import CallFormat, CallReader, checked, format_of
from components.serving.constraint import tool_schema
from components.serving.protocol import ChatAsked, parsed
from components.serving.replies import Frames, Object, chat_logprobs, head, usage
from components.serving.rows import Constraint, Scored
from components.serving.served import Served
from components.serving.service import Service
from components.serving.streaming import EventStream
from components.serving.technique_reply import TechniqueReply, by_techniques


async def chat(service: Service, http: HttpRequest) -> Response:
    """Answers a conversation."""
    born = time.monotonic()
    asked = parsed(await service.body(http), ChatAsked)
    reply = await started(service, http, asked, born)
    if asked.stream:
        return EventStream(reply.chunks(), reply.cancel)
    return JSONResponse(await reply.whole())


async def started(service: Service, http: HttpRequest, asked: ChatAsked, born: float) -> "ChatReply | TechniqueReply":
    """The answer to a conversation: `whole`, or in `chunks`; `cancel` it if they are not read to their end."""
    if asked.techniques:
        return await by_techniques(service, http, asked)
    served = service.find(asked.model, generates=True)
    tools = checked(asked.tools) if asked.tool_choice != "none" else []
    prompt = await service.prepare(served.chat_prompt, asked.messages, tools)
    options = service.options(served, asked, [prompt], limit=asked.limit, top=asked.top)
    form = await service.prepare(format_of, served.tokenizer, tools) if tools else None
    constrain = await service.prepare(_constraint, served, asked, tools, form)
    answering = service.answering(
        http, served, [prompt], options, begins=True, constrain=constrain, show_special=form is not None
    )
    begun = "" if constrain else served.tokenizer.prefill
    return ChatReply(service, served, asked, prompt, answering, form, born, begun=begun)


def _constraint(
    served: Served, asked: ChatAsked, tools: list[Object], form: CallFormat | None
) -> Callable[[], Constraint] | None:
    """What every sample is held to by response_format or tool_choice."""
    choice = asked.tool_choice
    if choice in ("auto", "none"):
        return served.grammars.of_format(asked.response_format)
    named = choice.get("function") if isinstance(choice, dict) else None
    name = named.get("name") if isinstance(named, dict) else None
    if choice != "required":
        tools = [tool for tool in tools if tool["function"]["name"] == name]
    if form is None or not tools:
        raise invalid("tool_choice: expected auto, none, required or the name of one of the tools", "tool_choice")
    if asked.response_format not in (None, {"type": "text"}):
        raise invalid("response_format: only without a tool_choice that forces a call", "response_format")
    schema = tool_schema(tools, form.name, form.arguments, listed=form.listed)
    return served.grammars.of_calls(form.opening, schema, form.closing)


class ChatReply:
    """The answer to one conversation, whole or in chunks. form: of calls in it, None if it has no tools.

    begun: the start of the answer that is in the prompt; "" for one held to a format, which that start is no part of.
    """

    def __init__(
        self,
        service: Service,
        served: Served,
        asked: ChatAsked,
        prompt: list[int],
        answering: Answering,
        form: CallFormat | None,
        born: float,
        *,
        begun: str,
    ) -> None:
        self.readers = [CallReader(form) for _ in range(asked.n)] if form else []
        self.service, self.served, self.asked = service, served, asked
        self.prompt, self.answering, self.born, self.begun = prompt, answering, born, begun
        self.head = head(served, "chat.completion", "chatcmpl")

    def cancel(self) -> None:
        self.answering.cancel()

    def usage(self) -> Object:
        return usage(self.answering.requests, len(self.prompt))

    async def whole(self) -> Object:
        """The chat completion object."""
        count = self.asked.n
        texts = [self.begun] * count
        scored: list[list[Scored]] = [[] for _ in range(count)]
        finishes: list[str | None] = [None] * count
        with self.answering:
            async for _, piece in self.answering.pieces():
                texts[piece.sample] += piece.text
                scored[piece.sample] += piece.scored
                finishes[piece.sample] = piece.finish
        self.service.count(self.served, self.answering, self.born)
        choices = []
        for index in range(count):
            message: Object = {"role": "assistant", "content": texts[index], "refusal": None}
            if self.readers:
                said = self.readers[index].push(texts[index])
                rest, calls = self._ended(index)
                message |= {"content": (said + rest).rstrip() or None, "tool_calls": calls} if calls else {}
                finishes[index] = "tool_calls" if calls else finishes[index]
            logprobs = self._logprobs(scored[index])
            choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finishes[index]})
        return self.head | {"choices": choices, "usage": self.usage()}

    def _ended(self, index: int) -> tuple[str, list[Object]]:
        rest, calls = self.readers[index].end()
        return rest, calls if self.asked.parallel_tool_calls else calls[:1]

    async def chunks(self) -> AsyncIterator[Object]:
        """The chunks of a stream."""
        frames = Frames(self.head, with_usage=self.asked.with_usage)
        for index in range(self.asked.n):
            yield frames.chunk(index, {"role": "assistant", "content": self.begun, "refusal": None})
        async for _, piece in self.answering.pieces():
            text = piece.text
            calls: list[Object] = []
            if self.readers:
                text = self.readers[piece.sample].push(text)
                rest, calls = self._ended(piece.sample) if piece.finish else ("", [])
                text += rest
            if text or piece.scored:
                yield frames.chunk(piece.sample, {"content": text}, self._logprobs(piece.scored))
            if calls:
                numbered = [{"index": number} | call for number, call in enumerate(calls)]
                yield frames.chunk(piece.sample, {"tool_calls": numbered})
            if piece.finish:
                yield frames.chunk(piece.sample, {}, finish="tool_calls" if calls else piece.finish)
        self.service.count(self.served, self.answering, self.born)
        for frame in frames.last(self.usage()):
            yield frame

    def _logprobs(self, scored: Any) -> Object | None:
        return chat_logprobs(self.served, scored) if self.asked.logprobs else None
