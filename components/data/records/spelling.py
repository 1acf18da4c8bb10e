"""Converts messages as other tools spell them to {"role", "content"}, keeping their other fields.

Leaves an unknown spelling to `formats`, which reports it.
"""

from typing import Any

from components.data.records.errors import FormatError, kind
from components.data.records.strict_json import DECODER, what_is_wrong

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
_TEXT_PARTS = ("text", "input_text", "output_text")


def respelled(value: Any, name: str) -> Any:
    """A list of messages, from a list, a single message, or JSON; roles are in lower case, mapped by `SPEAKERS`.

    Joins content that is a list of text parts. Raises FormatError for broken JSON and for a part that is not text.
    name: the field, for errors.
    """
    value = _parsed(value, name)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return value
    messages = [_parsed(message, f"{name}[{i}]") for i, message in enumerate(value)]
    return [_message(item, f"{name}[{i}]") if isinstance(item, dict) else item for i, item in enumerate(messages)]


def _message(message: dict[str, Any], name: str) -> dict[str, Any]:
    made = dict(message)
    if isinstance(message.get("role"), str):
        role = message["role"].strip().lower()
        made["role"] = SPEAKERS.get(role, role)
    if isinstance(message.get("content"), list):
        made["content"] = "".join(_text(part, name) for part in message["content"]) if message["content"] else None
    for plain, other in (("role", "from"), ("content", "value")):
        if made.get(plain) is not None and made.get(other) is not None:
            raise FormatError(f"{name} with {plain} or {other}", "both")
    return made


def _text(part: Any, name: str) -> str:
    if not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS or not isinstance(part.get("text"), str):
        got = f"one of type {part['type']!r}" if isinstance(part, dict) and "type" in part else kind(part)
        raise FormatError(f"text parts in {name}.content", got)
    return part["text"]


def _parsed(value: Any, name: str) -> Any:
    """The list or object that a string contains as JSON; anything else unchanged."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return DECODER.decode(value)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name} as JSON", what_is_wrong(error)) from None
