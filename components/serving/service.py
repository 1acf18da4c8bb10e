"""What all endpoints share: the models, the engine, the limits, and the way from a request to the engine."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from starlette.requests import Request as HttpRequest

from components.serving.answering import Answering, busy
from components.serving.api_errors import ApiError, invalid, too_long
from components.serving.engine import Busy, Engine
from components.serving.prometheus import Metrics
from components.serving.protocol import Asked
from components.serving.rows import Constraint, Options, Request
from components.serving.runs import Runs
from components.serving.served import Served
from components.serving.votes import Votes

Result = TypeVar("Result")


log = logging.getLogger(__name__)
TECHNIQUES = 32  # conversations that techniques answer at a time; more get status 429
ARRIVAL = 30.0  # seconds that a request's body can take


class Limits(NamedTuple):
    """body: bytes of a request. seconds: longest time of an answer. tokens: longest answer; None: what fits."""

    body: int = 4 * 2**20
    seconds: float = 600.0
    tokens: int | None = None


class Service:
    """Models by name, and the engine that runs the language models among them. votes: None keeps none."""

    def __init__(
        self, served: Sequence[Served], engine: Engine, limits: Limits | None = None, votes: Votes | None = None
    ) -> None:
        self.served = {one.name: one for one in served}
        self.engine, self.limits = engine, limits or Limits()
        self.metrics, self.votes, self.runs = Metrics(), votes, Runs(served)
        self.logs_texts = False
        self.writer = ThreadPoolExecutor(1, "writer")  # templates and tokenizers, one at a time, outside the loop
        self.techniques = ThreadPoolExecutor(2 * TECHNIQUES, "techniques")  # which mostly wait, or are being set up
        self.slots = asyncio.Semaphore(TECHNIQUES)

    async def body(self, request: HttpRequest) -> bytes:
        """The request's body. Raises ApiError for one that is not JSON by its type, or too large.

        A browser sends JSON to another site only if that site allows it, which this server does not.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "expected the header Content-Type: application/json")
        content = bytearray()
        try:
            async with asyncio.timeout(ARRIVAL):
                async for chunk in request.stream():
                    content += chunk
                    if len(content) > self.limits.body:
                        message = f"the request has more than {self.limits.body:,} bytes"
                        raise ApiError(413, message, code="request_too_large")
        except TimeoutError:
            raise ApiError(408, f"the request did not arrive within {ARRIVAL} s", code="timeout") from None
        return bytes(content)

    def find(self, name: str, *, generates: bool) -> Served:
        """A model of one kind. Raises ApiError for an unknown name, or a model of the other kind."""
        served = self.served.get(name)
        if served is None:
            names = ", ".join(one.name for one in self.served.values() if one.generates == generates) or "none"
            message = f"The model {name[:80]!r} does not exist. Models here: {names}"
            raise ApiError(404, message, code="model_not_found", param="model")
        if served.generates != generates:
            wanted = "a language model" if generates else "a reward model"
            use = "POST /v1/score" if generates else "POST /v1/chat/completions"
            raise invalid(f"{name} is not {wanted}; use {use} with it", "model", "model_not_supported")
        return served

    async def prepare(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Runs a function that reads or writes texts, outside the loop."""
        return await asyncio.get_running_loop().run_in_executor(self.writer, function, *arguments)

    async def compute(self, function: Callable[[], Result]) -> Result:
        """Runs a function on the engine's thread. Raises ApiError if the queue is full."""
        try:
            return await asyncio.wrap_future(self.engine.call(function))
        except Busy as error:
            raise busy(error) from None

    def check_samples(self, n: int, prompts: int) -> None:
        """Raises ApiError if the prompts' samples are more than can run at once."""
        if n * prompts > self.engine.most_rows:
            got = f"{prompts} prompts with n = {n}" if prompts > 1 else str(n)
            raise invalid(f"n: expected at most {self.engine.most_rows} samples in all, got {got}", "n")

    def options(
        self, served: Served, asked: Asked, prompts: Sequence[Sequence[int]], *, limit: int | None, top: int | None
    ) -> list[Options]:
        """One prompt's options each. limit: the answer's tokens; None: what fits in the context and in memory.

        Without a seed, each prompt gets one of its own. Raises ApiError if too many samples or tokens are asked for.
        """
        self.check_samples(asked.n, len(prompts))
        made = []
        fitting = min(served.room, self.engine.longest(served.name, asked.n))
        for prompt in prompts:
            answer = limit
            if answer is None:  # a prompt that fills the memory is the engine's to refuse
                answer = max(min(1, served.room - len(prompt)), fitting - len(prompt))
            if len(prompt) + max(answer, 1) > served.room:
                what = "messages" if hasattr(asked, "messages") else "prompt"
                raise too_long(served.room, len(prompt), max(answer, 0), what)
            made.append(
                Options(
                    max_tokens=min(answer, self.limits.tokens or answer),
                    n=asked.n,
                    seed=secrets.randbits(63) if asked.seed is None else asked.seed,
                    temperature=asked.temperature,
                    top_p=asked.top_p or 1e-9,
                    top_k=asked.top_k,
                    stop=asked.stops,
                    top=top,
                    frequency_penalty=asked.frequency_penalty,
                    presence_penalty=asked.presence_penalty,
                    bias=asked.biases(served.model.config.vocab_size),
                )
            )
        return made

    def answering(
        self,
        http: HttpRequest,
        served: Served,
        prompts: Sequence[Sequence[int]],
        options: Sequence[Options],
        *,
        begins: bool,
        constrain: Callable[[], Constraint] | None = None,
        show_special: bool = False,
    ) -> Answering:
        """Starts to continue the prompts; enter the result as a context."""
        answering = Answering(self.engine, served.name, http.is_disconnected, keeps_texts=self.logs_texts)
        answering.start(
            [
                Request(
                    prompt,
                    own,
                    served.tokenizer,
                    answering.deliver_to(number),
                    begins=begins,
                    seconds=self.limits.seconds,
                    constrain=constrain,
                    show_special=show_special,
                )
                for number, (prompt, own) in enumerate(zip(prompts, options))
            ]
        )
        return answering

    def count(self, served: Served, answering: Answering, born: float) -> None:
        """Adds a finished answer to the metrics. born: when its request came, of time.monotonic."""
        requests = answering.requests
        self.count_tokens(served, requests)
        if answering.first_token is not None:
            self.metrics.first_token(answering.first_token - born)
        for (prompt, _), text in (answering.texts or {}).items():
            log.info("%s %r -> %r", served.name, served.tokenizer.decode(requests[prompt].prompt), text)

    def count_tokens(self, served: Served, requests: Sequence[Request]) -> None:
        """Adds the tokens of finished requests to the metrics."""
        for name, amount in (
            ("gradus_prompt_tokens_total", sum(len(one.prompt) for one in requests)),
            ("gradus_cached_tokens_total", sum(one.cached for one in requests)),
            ("gradus_completion_tokens_total", sum(one.sampled for one in requests)),
        ):
            self.metrics.add(name, amount, model=served.name)

    def page(self) -> str:
        """The text of /metrics."""
        running = {
            ("gradus_running_rows", (("model", name),)): float(lane.running) for name, lane in self.engine.lanes.items()
        }
        return self.metrics.page(running | {("gradus_waiting_requests", ()): float(self.engine.waiting())})

    def close(self) -> None:
        """Ends the threads."""
        self.engine.close()
        for threads in (self.writer, self.techniques):
            threads.shutdown(wait=False, cancel_futures=True)
