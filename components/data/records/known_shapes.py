"""The shapes of records by the names of their fields: which format reads a record, and what an error lists."""

from collections.abc import Collection
from typing import Any

from components.data.records.errors import FormatError

Shape = tuple[str, ...]
DEMONSTRATIONS: tuple[Shape, ...] = (
    ("messages",),
    ("conversations",),
    ("conversation",),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
)
ASKED: tuple[Shape, ...] = (  # also demonstrations, if a record has none of the fields of OWN
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("input", "output"),
)
COMPARISONS: tuple[Shape, ...] = (
    ("chosen", "rejected"),
    ("completions", "ranks"),
    ("instruction", "completions"),
    ("preferred_output", "non_preferred_output"),
    ("info", "summaries", "choice"),
    ("human_ref_A", "human_ref_B", "labels"),
)
LABELS = ("label", "kto_tag", "thumbs", "vote")  # of an answer, desirable or not
OWN = {"messages", "conversations", "conversation", "completion", "instruction", "chosen", "completions"}
SHAPES = {
    "text": (("text",), ("content",)),
    "chat": (*DEMONSTRATIONS, *ASKED),
    "preference": COMPARISONS,
    "prompts": (("prompt",), ("question",), ("query",)),
}


def has_any(fields: Collection[str], shapes: tuple[Shape, ...]) -> bool:
    """Whether a record with these fields has one of the shapes."""
    return any(set(shape) <= set(fields) for shape in shapes)


def unknown(row: dict[str, Any], name: str, more: str = "") -> FormatError:
    """The error for a record of no shape of a format: the shapes that it reads, the record's fields, and the formats
    that read such a record. row: with its null fields; more: what else the format reads."""
    shapes = SHAPES[name]
    is_single = all(len(shape) == 1 for shape in shapes)
    listed = [" and ".join(f'"{field}"' for field in shape) for shape in shapes]
    expected = "a field " + " or ".join(listed) if is_single else ", or ".join(listed)
    fields = [field for field, value in row.items() if value is not None]
    others = [f"data={other}" for other in SHAPES if other != name and has_any(fields, SHAPES[other])]
    got = "fields " + ", ".join(map(repr, fields)) if fields else "no fields"
    got += "".join(f'; "{field}" is null' for field, value in row.items() if value is None)
    return FormatError(expected + more, got + (f", which {' or '.join(others)} can read" if others else ""))
