"""Errors in data, and how an error message shows a value."""

from dataclasses import dataclass
from typing import Any


class FormatError(ValueError):
    """A raw record does not have the fields of its format; the message has what was expected and what was found."""

    def __init__(self, expected: str, got: str):
        super().__init__(f"expected {expected}, got {got}")


class SourceError(ValueError):
    """A source, or one record of it, cannot be used; the message names file and line and what to do."""


@dataclass(frozen=True)
class Unread:
    """Placeholder in a row for something that is not read from a file; what: how an error message shows it."""

    what: str


def kind(value: Any) -> str:
    """A value as an error message shows it: its type, and the value itself if it is short."""
    if isinstance(value, Unread):
        return value.what
    shown = repr(value)
    return f"{type(value).__name__} {shown}" if len(shown) <= 40 else type(value).__name__
