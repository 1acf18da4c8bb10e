"""Search for documents by BM25 (Robertson and Zaragoza 2009), as bm25s computes it."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from components.system import installing

WORD = re.compile("[^\\W\u2e80-\u9fff]+|[\u2e80-\u9fff]")  # a Chinese character is a word


class Index:
    """Documents, to be found by their words; case does not count.

    Raises ValueError if there are no documents, or bm25s is not installed.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        try:
            import bm25s
        except ModuleNotFoundError:
            raise ValueError(installing.missing("a search for documents", "bm25s", "retrieval")) from None
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # which it sets to DEBUG when it is imported
        self.documents = list(documents)
        divided = [_words(document) for document in self.documents]
        if not any(divided):
            raise ValueError("a search for documents: expected at least one document with a word in it")
        self._known = {word for words in divided for word in words}
        self._ranking: Any = bm25s.BM25()
        self._ranking.index(divided, show_progress=False)

    def best(self, question: str, count: int) -> list[str]:
        """At most `count` documents that share words with the question, best first, of equal ones the earlier first."""
        words = [word for word in _words(question) if word in self._known]
        if not words:
            return []
        scores = self._ranking.get_scores(words).tolist()
        order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
        return [self.documents[place] for place in order[:count] if scores[place] > 0]


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())
