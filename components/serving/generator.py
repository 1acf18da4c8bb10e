"""What techniques generate with: a model of the engine, asked from another thread, which waits for whole answers."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from queue import SimpleQueue
from typing import NamedTuple

from components.prompting.technique import Answer, Answers, Call, Query, Tokens
from components.serving.answering import busy, failed
from components.serving.api_errors import ApiError, invalid, too_long
from components.serving.calls import CallFormat, CallReader, checked, format_of
from components.serving.engine import Busy, Engine
from components.serving.rows import Constraint, Event, Failed, Options, Request
from components.serving.served import Served


class EngineGenerator:
    """Answers queries with one served model; several threads can call it at once, and share its batches.

    options: how to sample, except for what a query sets; max_tokens is a maximum: fewer are sampled where fewer fit.
    seconds: the longest time of an answer. writer: runs templates and tokenizers, which are for one thread at a time.
    """

    def __init__(
        self, engine: Engine, served: Served, options: Options, writer: Executor, *, seconds: float = float("inf")
    ) -> None:
        self.engine, self.served, self.options, self.writer, self.seconds = engine, served, options, writer, seconds
        self.requests: list[Request] = []  # all so far, for what they cost
        self._canceled = False

    def __call__(self, query: Query) -> Answers:
        """Raises ApiError for a query that the model cannot answer, and once it is canceled."""
        prepared = self.writer.submit(self._prepared, query).result()
        options = self._options(query, len(prepared.prompt))
        events: SimpleQueue[Event] = SimpleQueue()
        request = Request(
            prepared.prompt,
            options,
            self.served.tokenizer,
            events.put,
            seconds=self.seconds,
            constrain=prepared.constrain,
            show_special=prepared.form is not None,
        )
        self.requests.append(request)
        self._submit(request)
        answers = self._collected(events, options.n, prepared)
        return Answers(answers, Tokens(len(prepared.prompt), request.sampled))

    def cancel(self) -> None:
        """Ends what is running; later queries raise ApiError."""
        self._canceled = True
        for request in self.requests:
            self.engine.cancel(request)
            request.deliver(Failed("the client is gone"))

    def _prepared(self, query: Query) -> "_Prepared":
        tools = checked(query.tools)
        prompt = self.served.chat_prompt(query.messages, tools)
        form = format_of(self.served.tokenizer, tools) if tools else None
        return _Prepared(prompt, form, self.served.grammars.of_format(query.response_format))

    def _options(self, query: Query, prompt: int) -> Options:
        room = self.served.room - prompt
        if room < 1:
            raise too_long(self.served.room, prompt, 1, "messages")
        fitting = self.engine.longest(self.served.name, query.n) - prompt
        most = min(self.options.max_tokens, room, max(1, fitting))  # what does not fit at all, the engine refuses
        return replace(self.options, max_tokens=most, n=query.n, seed=query.seed, temperature=query.temperature)

    def _submit(self, request: Request) -> None:
        if self._canceled:
            raise ApiError(499, "the client is gone")
        try:
            self.engine.submit(self.served.name, request)
        except Busy as error:
            raise busy(error) from None
        except ValueError as error:
            raise invalid(str(error)) from None

    def _collected(self, events: "SimpleQueue[Event]", count: int, prepared: "_Prepared") -> list[Answer]:
        begun = "" if prepared.constrain else self.served.tokenizer.prefill  # which is no part of a format
        texts, finished = [begun] * count, [False] * count
        left = count
        while left:
            event = events.get()
            if isinstance(event, Failed):
                raise failed(event)
            texts[event.sample] += event.text
            if event.finish:
                finished[event.sample] = event.finish == "stop"
                left -= 1
        return [answer_of(text, ended, prepared.form) for text, ended in zip(texts, finished)]


class _Prepared(NamedTuple):
    prompt: list[int]
    form: CallFormat | None
    constrain: Callable[[], Constraint] | None


def answer_of(text: str, finished: bool, form: CallFormat | None) -> Answer:
    """What a model said, with the calls in it. form: None if it has no tools."""
    if form is None:
        return Answer(text, finished)
    reader = CallReader(form)
    said = reader.push(text)
    rest, calls = reader.end()
    made = [Call(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls]
    return Answer((said + rest).rstrip(), finished, made) if made else Answer(text, finished)
