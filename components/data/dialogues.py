"""The base of the data modules whose records contain dialogues."""

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

from components.data.base import RecordData
from components.data.records.formats import Record
from components.data.records.thinking import without_thinking

Think = Literal["keep", "strip"]
Overlong = Literal["drop"] | None


class DialogueData(RecordData):
    """Base of the formats of dialogues.

    think: what becomes of <think>…</think> and reasoning_content in the assistant's messages. "keep" leaves them: an
    answer is learned with its thinking, and which thinking of earlier answers a prompt contains is the chat template's
    decision, as when the model is used. "strip" removes all of it from every record, so that the model learns to answer
    at once.

    overlong: what becomes of a record that does not fit. None cuts it; "drop" leaves it out, so that every answer ends
    and lengths are those of whole answers: `counts["overlong"]` such records.
    """

    def __init__(self, *, think: Think = "keep", overlong: Overlong = None, **common: Any) -> None:
        super().__init__(**common)
        self.think, self.overlong = think, overlong

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"think": self.think, "overlong": self.overlong}

    def examples_of(self, record: Record, counts: Counter[str]) -> list[dict[str, Any]]:
        cut = counts["truncated"]
        made = super().examples_of(record, counts)
        if self.overlong is None or counts["truncated"] == cut:
            return made
        counts["truncated"] = cut
        counts["overlong"] += 1
        return []

    def reader(self, normalize: Callable[[Any], Record]) -> Callable[[Any], Record]:
        """`normalize`, without the thinking if it is stripped."""
        return normalize if self.think == "keep" else lambda row: without_thinking(normalize(row))
