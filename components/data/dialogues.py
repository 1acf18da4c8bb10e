"""The base of the data modules whose records contain dialogues."""

from collections.abc import Callable
from typing import Any, Literal

from components.data.base import RecordData
from components.data.records.formats import Record
from components.data.records.thinking import without_thinking

Think = Literal["keep", "strip"]


class DialogueData(RecordData):
    """Base of the formats of dialogues.

    think: what becomes of <think>…</think> and reasoning_content in the assistant's messages. "keep" leaves them: an
    answer is learned with its thinking, and which thinking of earlier answers a prompt contains is the chat template's
    decision, as when the model is used. "strip" removes all of it from every record, so that the model learns to answer
    at once.
    """

    def __init__(self, *, think: Think = "keep", **common: Any) -> None:
        super().__init__(**common)
        self.think = think

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"think": self.think}

    def reader(self, normalize: Callable[[Any], Record]) -> Callable[[Any], Record]:
        """`normalize`, without the thinking if it is stripped."""
        return normalize if self.think == "keep" else lambda row: without_thinking(normalize(row))
