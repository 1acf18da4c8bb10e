"""What can be wrong with data, and how an error shows a value."""

from dataclasses import dataclass
from typing import Any


class FormatError(ValueError):
    """One raw record does not have the fields of its format; says what was expected and what was found."""

    def __init__(self, expected: str, got: str):
        super().__init__(f"expected {expected}, got {got}")


class SourceError(ValueError):
    """A source, or one record of it, cannot be used; the message names file and line and what to do."""


@dataclass(frozen=True)
class Unread:
    """Stands in a row where a file holds something that is not read; what: as an error shows it."""

    what: str


def kind(value: Any) -> str:
    """A value as an error shows it: its type, and itself where that is short."""
    if isinstance(value, Unread):
        return value.what
    shown = repr(value)
    return f"{type(value).__name__} {shown}" if len(shown) <= 40 else type(value).__name__
