"""Reflection: the model answers, criticizes its answer, and revises it.  Source: Madaan et al. 2023 (Self-Refine)."""

from dataclasses import dataclass, replace

from components.prompting.technique import (
    Answer,
    Answers,
    Generate,
    Query,
    Step,
    expect_count,
    next_seed,
    one_by_one,
)


@dataclass(frozen=True)
class Reflection:
    """Continues the conversation after an answer: criticism, then a revised answer, `rounds` times.

    The criticism is plain text, whatever format the answer is held to. Raises ValueError for fewer than 1 rounds.
    """

    rounds: int = 1
    criticize: str = "Check your answer. What is wrong with it, if anything?"
    revise: str = "Now answer the question again, better."

    def __post_init__(self) -> None:
        expect_count("reflection", "rounds", self.rounds)

    def __call__(self, generate: Generate, query: Query) -> Answers:
        return one_by_one(lambda one: self._revised(generate, one), query)

    def _revised(self, generate: Generate, query: Query) -> Answers:
        (answer,), tokens = generate(query)
        for turn in range(self.rounds):
            asked = _continued(query, answer, self.criticize)
            plain = replace(asked, seed=next_seed(query, turn, 0), response_format=None)
            (criticism,), spent = generate(plain)
            tokens += spent
            asked = _continued(asked, criticism, self.revise)
            (revised,), spent = generate(replace(asked, seed=next_seed(query, turn, 1)))
            tokens += spent
            draft, remark = (Step("reflection", one.text) for one in (answer, criticism))
            answer = revised.after(*answer.trace, draft, *criticism.trace, remark)
        return Answers([answer], tokens)


def _continued(query: Query, answer: Answer, request: str) -> Query:
    return query.then({"role": "assistant", "content": answer.text}, {"role": "user", "content": request})
