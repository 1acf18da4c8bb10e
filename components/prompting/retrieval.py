"""Retrieval: documents that match the question are put before it.  Source: Lewis et al. 2020; Ram et al. 2023 for a
model that was not trained for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from components.prompting.bm25 import Index
from components.prompting.technique import Answers, Generate, Query, Step, expect_count


@dataclass(frozen=True)
class Retrieval:
    """Puts the documents that match the last message best on lines before it; none match: the query stays as it is.

    documents: texts, each whole in the prompt if it is chosen. count: how many at most. Raises ValueError for a count
    below 1, no documents, and if bm25s is not installed.
    """

    documents: Sequence[str]
    count: int = 3

    def __post_init__(self) -> None:
        expect_count("retrieval", "count", self.count)
        assert self._index  # built now, so that its errors are raised now

    def __call__(self, generate: Generate, query: Query) -> Answers:
        texts = self._index.best(query.messages[-1]["content"], self.count)
        made = generate(query.worded(before="\n".join(texts)))
        steps = [Step("retrieval", text) for text in texts]
        return made._replace(answers=[answer.after(*steps) for answer in made.answers])

    @cached_property
    def _index(self) -> Index:
        return Index(self.documents)
