"""The answer in a completion, which is a string, or messages of which the last one's content counts."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Completion = str | Sequence[Mapping[str, Any]]
Scores = list[float | None]  # None: the reward does not apply to the record


def texts_of(completions: Sequence[Completion]) -> list[str]:
    """The text of each completion; of messages, the content of the last."""
    return [one if isinstance(one, str) else str(one[-1]["content"]) for one in completions]


def pattern_of(function: str, argument: str, pattern: str | None) -> re.Pattern[str] | None:
    """A regular expression in which "." matches line breaks. Raises ValueError naming the argument if it is invalid."""
    try:
        return re.compile(pattern, re.DOTALL) if pattern is not None else None
    except re.error as error:
        raise ValueError(f"{function}: {argument}={pattern!r} is not a regular expression: {error}") from None


def answer_in(text: str, pattern: re.Pattern[str] | None) -> str | None:
    """The last match of the pattern, its first group if it has one, or the text itself without a pattern; stripped."""
    if pattern is None:
        return text.strip()
    matches = list(pattern.finditer(text))
    if not matches:
        return None
    return (matches[-1][1 if pattern.groups else 0] or "").strip()


def occurs(answer: str, text: str) -> bool:
    """Whether the answer is in the text, not as part of a longer word or number."""
    before = r"(?<!\w)(?<!\d[.,])(?<!(?<!\w)[-−])" if answer[:1].isalnum() else ""
    after = r"(?!\w|[.,]\d)" if answer[-1:].isalnum() else ""
    return bool(answer) and re.search(f"{before}{re.escape(answer)}{after}", text) is not None
