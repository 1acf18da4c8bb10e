"""Dialogues in one string: "\\n\\nHuman: … \\n\\nAssistant: …", as in Anthropic's data."""

import re
from typing import Any

from components.data.records.dialogue import Message, writable
from components.data.records.errors import FormatError

_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"\n\n(Human|Assistant):")


def is_transcript(value: Any) -> bool:
    """Whether a value starts like a transcript."""
    return isinstance(value, str) and _TURN.match(value) is not None


def transcript(value: str, name: str) -> list[Message]:
    """The messages of a transcript, without the white space around them. The line ends at its start can be missing.

    Raises FormatError for another text. name: the field, for errors.
    """
    whole = "\n\n" + value.lstrip() if value.lstrip().startswith("Human:") else value
    if not is_transcript(whole):
        start = value[:20] + "…" * (len(value) > 20)
        raise FormatError(f'"{name}" to begin with "\\n\\nHuman:" (there is no "prompt")', repr(start))
    parts = _TURN.split(whole)[1:]
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": _SPEAKERS[speaker], "content": writable(text, name).strip()} for speaker, text in turns]
