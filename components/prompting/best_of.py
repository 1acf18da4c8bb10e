"""Best of n: the sample that a reward model or a verifier scores highest.  Source: Stiennon et al. 2020; Cobbe et al.
2021 for verifiers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from components.prompting.technique import (
    Answer,
    Answers,
    Generate,
    Message,
    Query,
    Step,
    Tokens,
    expect_count,
    sampled,
)


class Scored(NamedTuple):
    """One score per answer, higher is better, and the tokens that scoring read."""

    scores: Sequence[float]
    tokens: Tokens = Tokens()


Score = Callable[[Sequence[Message], Sequence[str]], Scored]  # of a conversation and answers to it


@dataclass(frozen=True)
class BestOfN:
    """Samples several answers and takes the one with the highest score, of equal ones the first.

    The scorer sees the conversation as the user wrote it if this technique is the first one that is applied.
    Raises ValueError for fewer than 1 samples, and several samples at temperature 0.
    """

    score: Score
    samples: int = 8

    def __post_init__(self) -> None:
        expect_count("best_of_n", "samples", self.samples)

    def __call__(self, generate: Generate, query: Query) -> Answers:
        groups, tokens = sampled("best_of_n", generate, query, self.samples)
        chosen = []
        for group in groups:
            best, spent = self._best(query, group)
            chosen.append(best)
            tokens += spent
        return Answers(chosen, tokens)

    def _best(self, query: Query, answers: Sequence[Answer]) -> tuple[Answer, Tokens]:
        scored = self.score(query.messages, [answer.text for answer in answers])
        best = max(range(len(answers)), key=lambda place: scored.scores[place])
        lowest, highest = min(scored.scores), scored.scores[best]
        step = Step("best_of_n", f"the highest of {len(answers)} scores, {highest:.3g}; the lowest is {lowest:.3g}")
        return answers[best]._replace(trace=(*answers[best].trace, step)), scored.tokens
