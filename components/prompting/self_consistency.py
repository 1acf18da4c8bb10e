"""Self-consistency: the answer that most samples agree on.  Source: Wang et al. 2023."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from components.prompting.technique import Answer, Answers, Generate, Query, Step, expect_count, sampled
from components.rewards.answers import answer_in, pattern_of

NUMBER = r"[-−]?\d+(?:[.,]\d+)*"
EXTRACTS = {"number": NUMBER, "line": r"(?m)^[^\S\n]*(\S[^\n]*)"}  # by name: the last number, the last line


@dataclass(frozen=True)
class SelfConsistency:
    """Samples several answers, and takes the first of those that most others equal.

    extract: what has to be equal: one of EXTRACTS, or a regular expression, whose last match counts (its first group
    if it has one); None: the whole answer. Case, white space and the final period are ignored. Answers without a match
    vote only if there are no others. Of equally many, the answer that was sampled first wins.
    Raises ValueError for fewer than 1 samples, an invalid regular expression, and several samples at temperature 0.
    """

    samples: int = 5
    extract: str | None = None

    def __post_init__(self) -> None:
        expect_count("self_consistency", "samples", self.samples)
        self._key("")

    def __call__(self, generate: Generate, query: Query) -> Answers:
        groups, tokens = sampled("self_consistency", generate, query, self.samples)
        return Answers([self._elected(group) for group in groups], tokens)

    def _elected(self, answers: Sequence[Answer]) -> Answer:
        keys = [self._key(answer.text) for answer in answers]
        voting: list[str | None] = [key for key in keys if key is not None]
        votes = Counter(voting or keys)
        winner = votes.most_common(1)[0][0]  # of equal counts, the one that was counted first
        shown = ", ".join(f"{key or 'no answer'} ×{count}" for key, count in votes.most_common())
        chosen = answers[keys.index(winner)]
        return chosen._replace(trace=(*chosen.trace, Step("self_consistency", shown)))

    def _key(self, text: str) -> str | None:
        pattern = pattern_of("self_consistency", "extract", EXTRACTS.get(self.extract or "", self.extract))
        answer = answer_in(text, pattern)
        return None if answer is None else " ".join(answer.casefold().split()).rstrip(" .!。！")
