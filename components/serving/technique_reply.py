"""A chat completion by techniques: the official object, whose usage counts all tokens that the techniques took."""

import asyncio
import logging
from collections.abc import AsyncIterator

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from components.prompting.best_of import Score
from components.prompting.named import techniques_of
from components.prompting.self_consistency import EXTRACTS, SelfConsistency
from components.prompting.technique import Answer, Answers, Generate, Query, Tokens, applied
from components.serving.answering import LOOK, Gone, busy, failed
from components.serving.api_errors import invalid
from components.serving.engine import Busy
from components.serving.generator import EngineGenerator
from components.serving.protocol import ChatAsked
from components.serving.replies import Frames, Object, head
from components.serving.rows import Failed
from components.serving.scoring import scorer_of
from components.serving.served import message_of
from components.serving.service import Service
from components.serving.streaming import EventStream

RETRY = 5  # seconds after which a client may try again
log = logging.getLogger(__name__)


class TechniqueReply:
    """The answer to one conversation. In a stream each choice's text is one chunk, since it is chosen at the end."""

    def __init__(self, service: Service, http: HttpRequest, asked: ChatAsked) -> None:
        self.service, self.http, self.asked = service, http, asked
        self.served = service.find(asked.model, generates=True)
        self.head = head(self.served, "chat.completion", "chatcmpl")
        (options,) = service.options(self.served, asked, [[]], limit=asked.limit, top=None)
        messages = [message_of(message, f"messages[{number}]") for number, message in enumerate(asked.messages)]
        self.query = Query(messages, asked.n, options.seed, asked.temperature, response_format=asked.response_format)
        seconds = service.limits.seconds
        self.generator = EngineGenerator(service.engine, self.served, options, service.writer, seconds=seconds)
        self._loop = asyncio.get_running_loop()

    async def response(self) -> Response:
        """The answer, or the beginning of a stream. Raises ApiError for techniques that do not exist or do not fit, and
        if too many conversations are being answered by techniques."""
        if self.service.slots.locked():
            raise busy(Busy(RETRY))
        generate = await self._loop.run_in_executor(self.service.techniques, self._applied)
        if self.asked.stream:
            return EventStream(self._chunks(generate), self.generator.cancel)
        answers, tokens = await self._answers(generate)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": None,
                "finish_reason": _finish(answer),
                "trace": _trace(answer),
            }
            for index, answer in enumerate(answers)
        ]
        return JSONResponse(self.head | {"choices": choices, "usage": _usage(tokens)})

    async def _chunks(self, generate: Generate) -> AsyncIterator[Object]:
        frames = Frames(self.head, with_usage=self.asked.with_usage)
        for index in range(self.asked.n):
            yield frames.chunk(index, {"role": "assistant", "content": "", "refusal": None})
        answers, tokens = await self._answers(generate)
        for index, answer in enumerate(answers):
            yield frames.chunk(index, {"content": answer.text, "trace": _trace(answer)})
            yield frames.chunk(index, {}, finish=_finish(answer))
        for frame in frames.last(_usage(tokens)):
            yield frame

    async def _answers(self, generate: Generate) -> Answers:
        """Raises ApiError if it fails or takes longer than the server's limit, and Gone if the client left."""
        async with self.service.slots:
            return await self._answered(generate)

    async def _answered(self, generate: Generate) -> Answers:
        work = self._loop.run_in_executor(self.service.techniques, generate, self.query)
        work.add_done_callback(lambda done: done.cancelled() or done.exception())  # retrieved, also if nobody waits
        try:
            async with asyncio.timeout(self.service.limits.seconds):
                while not (await asyncio.wait([work], timeout=LOOK))[0]:
                    if await self.http.is_disconnected():
                        raise Gone
            made = work.result()
        except TimeoutError:
            raise failed(Failed("the techniques took longer than the server's time limit", late=True)) from None
        except ValueError as error:
            raise invalid(str(error), "techniques") from None
        finally:
            self.generator.cancel()
            self.service.count_tokens(self.served, self.generator.requests)
        if self.service.logs_texts:
            log.info("%s %r -> %r", self.served.name, self.asked.messages, [answer.text for answer in made.answers])
        return made

    def _applied(self) -> Generate:
        try:
            techniques = techniques_of(self.asked.techniques, self._scorer)
        except ValueError as error:
            raise invalid(str(error), "techniques") from None
        for one in techniques:  # somebody else's regular expression could run forever
            if isinstance(one, SelfConsistency) and one.extract not in (None, *EXTRACTS):
                raise invalid(f"self_consistency: extract: expected one of {', '.join(EXTRACTS)}", "techniques")
        return applied(techniques, self.generator)

    def _scorer(self, name: str) -> Score:
        return scorer_of(self.service.engine, self.service.find(name, generates=False), self.service.writer)


def _finish(answer: Answer) -> str:
    return "stop" if answer.finished else "length"


def _trace(answer: Answer) -> list[Object]:
    return [step._asdict() for step in answer.trace]


def _usage(tokens: Tokens) -> Object:
    return {"prompt_tokens": tokens.read, "completion_tokens": tokens.sampled, "total_tokens": tokens.total}
