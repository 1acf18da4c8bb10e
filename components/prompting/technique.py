"""The protocol of inference-time techniques: each turns a way to answer conversations into a better and costlier one.

    answer = applied([FewShot(examples), SelfConsistency(samples=9)], generate)
    answer(Query([{"role": "user", "content": "what color is the fev ?"}])).answers[0].text

A technique is a function of (generate, query). It may rewrite the query, ask `generate` several times, and choose among
the answers; what it returns is what `generate` returns, so techniques nest in any order and over any model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

from components.functional.seeding import derived_seed

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Tokens:
    """What answering took: read, tokens of prompts, also of a reward model's; sampled, tokens of all answers."""

    read: int = 0
    sampled: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.read + other.read, self.sampled + other.sampled)

    @property
    def total(self) -> int:
        return self.read + self.sampled


@dataclass(frozen=True)
class Query:
    """A conversation to answer, with what techniques may change about it; everything else is up to the generator.

    messages: as in a chat record, up to the answer. n: the number of answers, which differ if the temperature is not 0.
    The same query has the same answers. tools: functions that the model can call, as in a chat record.
    response_format: what holds the answers to a format, as in the API (json_object, json_schema, regex, choice).
    """

    messages: Sequence[Message]
    n: int = 1
    seed: int = 0
    temperature: float = 1.0
    tools: Sequence[Mapping[str, Any]] = ()
    response_format: Mapping[str, Any] | None = None

    def then(self, *messages: Message) -> "Query":
        """The query with its conversation continued by these messages."""
        return replace(self, messages=[*self.messages, *messages])

    def worded(self, *, before: str = "", after: str = "") -> "Query":
        """The query with lines before or after its last message, the question."""
        *earlier, last = self.messages
        content = "\n".join(filter(None, (before, last["content"], after)))
        return replace(self, messages=[*earlier, {**last, "content": content}])


class Step(NamedTuple):
    """An entry of an answer's trace: what a technique did, in its own words or the model's."""

    technique: str
    text: str


class Call(NamedTuple):
    """A tool's call in an answer; arguments: JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


class Answer(NamedTuple):
    """An answer. finished: whether it ended by itself. trace: how it came about, first step first."""

    text: str
    finished: bool = True
    calls: Sequence[Call] = ()
    trace: tuple[Step, ...] = ()

    def after(self, *steps: Step) -> "Answer":
        """The answer with earlier steps before its own."""
        return self._replace(trace=(*steps, *self.trace))


class Answers(NamedTuple):
    """The answers to a query, and the tokens that they took together, also for answers that were not chosen."""

    answers: Sequence[Answer]
    tokens: Tokens = Tokens()


Generate = Callable[[Query], Answers]


class Technique(Protocol):
    """Answers a query by means of `generate`. Raises ValueError for a query that it cannot apply to."""

    def __call__(self, generate: Generate, query: Query) -> Answers: ...


def applied(techniques: Sequence[Technique], generate: Generate) -> Generate:
    """A generator that applies techniques: the first one sees the user's query, and generates through the others."""
    for technique in reversed(techniques):
        generate = partial(technique, generate)
    return generate


def one_by_one(answer: Callable[[Query], Answers], query: Query) -> Answers:
    """Answers a query with n = 1 as often as the query asks, each time with a seed of its own."""
    made = [answer(replace(query, n=1, seed=next_seed(query, number))) for number in range(query.n)]
    return Answers([one for part in made for one in part.answers], sum((part.tokens for part in made), Tokens()))


def next_seed(query: Query, *numbers: int) -> int:
    """The seed of a follow-up to this query, by its numbers: unlike the query's own, and any other follow-up's."""
    return derived_seed(query.seed, *numbers)


def sampled(technique: str, generate: Generate, query: Query, samples: int) -> tuple[list[Sequence[Answer]], Tokens]:
    """Groups of `samples` samples, one for each answer that the query asks for, and the tokens that all took.

    Raises ValueError if several samples would all be the same.
    """
    if samples > 1 and query.temperature == 0:
        raise ValueError(
            f"{technique}: {samples} samples at temperature 0 are all the same; expected a temperature above 0"
        )
    answers, tokens = generate(replace(query, n=query.n * samples))
    return [answers[start : start + samples] for start in range(0, len(answers), samples)], tokens


def expect_count(technique: str, name: str, value: int) -> None:
    """Raises ValueError for a count below 1."""
    if value < 1:
        raise ValueError(f"{technique}: {name}: expected at least 1, got {value}")
