"""A chat completion by techniques: the official object, whose usage counts all tokens that the techniques took."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

from starlette.requests import Request as HttpRequest

from components.prompting.best_of import Score
from components.prompting.named import techniques_of
from components.prompting.self_consistency import EXTRACTS, SelfConsistency
from components.prompting.technique import Answer, Answers, Query, Technique, applied
from components.serving.answering import LOOK, Gone, busy, failed
from components.serving.api_errors import invalid
from components.serving.engine import Busy
from components.serving.generator import EngineGenerator
from components.serving.protocol import ChatAsked
from components.serving.replies import Frames, Object, head, usage
from components.serving.rows import Failed
from components.serving.scoring import scorer_of
from components.serving.served import message_of
from components.serving.service import Service

RETRY = 5  # seconds after which a client may try again
log = logging.getLogger(__name__)


async def by_techniques(service: Service, http: HttpRequest, asked: ChatAsked) -> "TechniqueReply":
    """The answer to a conversation. Raises ApiError for techniques that do not exist or do not fit, and if too many
    conversations are being answered by techniques."""
    if service.slots.locked():
        raise busy(Busy(RETRY))
    techniques = await asyncio.get_running_loop().run_in_executor(service.techniques, _techniques, service, asked)
    return TechniqueReply(service, http, asked, techniques)


def _techniques(service: Service, asked: ChatAsked) -> Sequence[Technique]:
    def scorer(name: str) -> Score:
        return scorer_of(service.engine, service.find(name, generates=False), service.writer)

    try:
        techniques = techniques_of(asked.techniques, scorer)
    except ValueError as error:
        raise invalid(str(error), "techniques") from None
    for one in techniques:  # a client's regular expression could run forever
        if isinstance(one, SelfConsistency) and one.extract not in (None, *EXTRACTS):
            raise invalid(f"self_consistency: extract: expected one of {', '.join(EXTRACTS)}", "techniques")
    return techniques


class TechniqueReply:
    """The answer to one conversation, whole or in chunks: each choice's text is one, since it is chosen at the end."""

    def __init__(self, service: Service, http: HttpRequest, asked: ChatAsked, techniques: Sequence[Technique]) -> None:
        self.service, self.http, self.asked = service, http, asked
        self.served = service.find(asked.model, generates=True)
        self.head = head(self.served, "chat.completion", "chatcmpl")
        (options,) = service.options(self.served, asked, [[]], limit=asked.limit, top=None)
        messages = [message_of(message, f"messages[{number}]") for number, message in enumerate(asked.messages)]
        self.query = Query(messages, asked.n, options.seed, asked.temperature, response_format=asked.response_format)
        seconds = service.limits.seconds
        self.generator = EngineGenerator(service.engine, self.served, options, service.writer, seconds=seconds)
        self.generate = applied(techniques, self.generator)
        self._loop = asyncio.get_running_loop()

    def cancel(self) -> None:
        self.generator.cancel()

    async def whole(self) -> Object:
        """The chat completion object."""
        answers, tokens = await self._answers()
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
        return self.head | {"choices": choices, "usage": usage(self.generator.requests, tokens.read)}

    async def chunks(self) -> AsyncIterator[Object]:
        """The chunks of a stream."""
        frames = Frames(self.head, with_usage=self.asked.with_usage)
        for index in range(self.asked.n):
            yield frames.chunk(index, {"role": "assistant", "content": "", "refusal": None})
        answers, tokens = await self._answers()
        for index, answer in enumerate(answers):
            yield frames.chunk(index, {"content": answer.text, "trace": _trace(answer)})
            yield frames.chunk(index, {}, finish=_finish(answer))
        for frame in frames.last(usage(self.generator.requests, tokens.read)):
            yield frame

    async def _answers(self) -> Answers:
        """Raises ApiError if it fails or takes longer than the server's limit, and Gone if the client left."""
        async with self.service.slots:
            return await self._answered()

    async def _answered(self) -> Answers:
        work = self._loop.run_in_executor(self.service.techniques, self.generate, self.query)
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
            self.cancel()
            self.service.count_tokens(self.served, self.generator.requests)
        if self.service.logs_texts:
            log.info("%s %r -> %r", self.served.name, self.asked.messages, [answer.text for answer in made.answers])
        return made


def _finish(answer: Answer) -> str:
    return "stop" if answer.finished else "length"


def _trace(answer: Answer) -> list[Object]:
    return [step._asdict() for step in answer.trace]
