"""POST /v1/completions: raw continuation of texts or ids, with the prompt's own log-probabilities if echoed."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from components.serving.answering import Answering, still_there
from components.serving.protocol import CompletionAsked, parsed
from components.serving.replies import Object, head, text_logprobs, usage
from components.serving.rows import Piece, Scored
from components.serving.served import Served
from components.serving.service import Service
from components.serving.streaming import EventStream


async def completions(service: Service, http: HttpRequest) -> Response:
    """Continues texts."""
    born = time.monotonic()
    asked = parsed(await service.body(http), CompletionAsked)
    served = service.find(asked.model, generates=True)
    service.check_samples(asked.n, len(asked.prompts))  # before all of them are tokenized
    prompts = [await service.prepare(served.text_prompt, prompt) for prompt in asked.prompts]
    options = service.options(served, asked, prompts, limit=asked.max_tokens, top=asked.logprobs)
    echoes = []
    for given, ids in zip(asked.prompts, prompts):
        await still_there(http.is_disconnected)
        echoes.append(await _echo(service, served, asked, given, ids))
    running = ([], []) if asked.max_tokens == 0 else (prompts, options)
    answering = service.answering(http, served, *running, begins=False)
    reply = CompletionReply(service, served, asked, prompts, echoes, answering, born)
    if asked.stream:
        return EventStream(reply.chunks(), answering.cancel)
    with answering:
        return JSONResponse(await reply.whole())


class Echo:
    """What is returned of a prompt: its text, and its tokens with their log-probabilities if asked for."""

    def __init__(self, text: str = "", ids: Sequence[int] = (), scored: Sequence[Scored] = ()) -> None:
        self.text, self.ids, self.scored = text, ids, list(scored)


async def _echo(
    service: Service, served: Served, asked: CompletionAsked, given: str | list[int], ids: list[int]
) -> Echo:
    if not asked.echo:
        return Echo()
    text = given if isinstance(given, str) else served.tokenizer.decode(ids, skip_special=False)
    if asked.logprobs is None:
        return Echo(text)
    top = asked.logprobs
    return Echo(text, ids, await service.compute(lambda: served.prompt_scores(ids, top)))


class CompletionReply:
    """The continuations of one or several prompts, whole or in chunks; prompt p's sample s is choice p · n + s."""

    def __init__(
        self,
        service: Service,
        served: Served,
        asked: CompletionAsked,
        prompts: list[list[int]],
        echoes: list[Echo],
        answering: Answering,
        born: float,
    ) -> None:
        self.service, self.served, self.asked, self.prompts = service, served, asked, prompts
        self.echoes, self.answering, self.born = echoes, answering, born
        self.offsets = [0] * (len(prompts) * asked.n)
        self.head = head(served, "text_completion", "cmpl")

    def usage(self) -> Object:
        return usage(self.answering.requests, sum(map(len, self.prompts)))

    async def whole(self) -> Object:
        """The completion object."""
        n = self.asked.n
        texts = [echo.text for echo in self.echoes for _ in range(n)]
        scored: list[list[Scored]] = [list(echo.scored) for echo in self.echoes for _ in range(n)]
        finishes: list[str | None] = ["length"] * len(texts)
        async for number, piece in self.answering.pieces():
            choice = number * n + piece.sample
            texts[choice] += piece.text
            scored[choice] += piece.scored
            finishes[choice] = piece.finish
        self.service.count(self.served, self.answering, self.born)
        choices = [
            self._choice(c, texts[c], scored[c], finishes[c], first=self._first(c // n)) for c in range(len(texts))
        ]
        return self.head | {"choices": choices, "usage": self.usage()}

    async def chunks(self) -> AsyncIterator[Object]:
        """The chunks of a stream."""
        n = self.asked.n
        for prompt, echo in enumerate(self.echoes):
            finish = "length" if self.asked.max_tokens == 0 else None
            for choice in range(prompt * n, (prompt + 1) * n):
                if self.asked.echo:
                    made = self._choice(choice, echo.text, echo.scored, finish, first=self._first(prompt))
                    yield self._frame([made])
                    self.offsets[choice] += len(echo.text)
        async for number, piece in self.answering.pieces():
            yield self._piece(number * n + piece.sample, piece)
        self.service.count(self.served, self.answering, self.born)
        if self.asked.with_usage:
            yield self._frame([]) | {"usage": self.usage()}

    def _piece(self, choice: int, piece: Piece) -> Object:
        made = self._choice(choice, piece.text, list(piece.scored), piece.finish)
        self.offsets[choice] += len(piece.text)
        return self._frame([made])

    def _first(self, prompt: int) -> int | None:
        ids = self.echoes[prompt].ids
        return ids[0] if ids else None

    def _frame(self, choices: list[Any]) -> Object:
        frame = self.head | {"choices": choices}
        return frame | {"usage": None} if self.asked.with_usage else frame

    def _choice(
        self, choice: int, text: str, scored: list[Scored], finish: str | None, *, first: int | None = None
    ) -> Object:
        logprobs = None
        if self.asked.logprobs is not None:
            offset = self.offsets[choice]
            logprobs = text_logprobs(self.served, scored, offset=offset, first=first, top=self.asked.logprobs)
        return {"index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish}
