"""Converts messages as other tools spell them to {"role", "content"}, keeping their other fields.

Leaves an unknown role to `formats`, which reports it.
"""

from typing import Any

from components.data.records.dialogue import calls_of
from components.data.records.errors import FormatError, kind
from components.data.records.strict_json import parsed

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
    "function_call": "assistant",
    "tool_call": "assistant",
}
CALLERS = ("function_call", "tool_call")  # their text is the JSON of one call or of a list of them
_TEXT_PARTS = ("text", "input_text", "output_text")


def respelled(value: Any, name: str) -> Any:
    """A list of messages, from a list, a single message, or JSON; roles are in lower case, mapped by `SPEAKERS`.

    "from" and "value" (ShareGPT) become role and content, the text of `CALLERS` becomes tool_calls, and content that is
    a list of text parts is joined. Raises FormatError for broken JSON, a part that is not text, an unknown speaker in
    "from", and a field in both spellings. name: the field, for errors.
    """
    value = parsed(value, name)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return value
    messages = [parsed(message, f"{name}[{i}]") for i, message in enumerate(value)]
    return [_message(item, f"{name}[{i}]") if isinstance(item, dict) else item for i, item in enumerate(messages)]


def are_messages(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return isinstance(value, list) and bool(value) and all(map(is_message, value))


def is_message(value: Any) -> bool:
    """Whether a value is an object with a speaker and what it says."""
    said = ("content", "tool_calls", "function_call") if isinstance(value, dict) and "role" in value else ("value",)
    return isinstance(value, dict) and ("role" in value or "from" in value) and any(name in value for name in said)


def _message(message: dict[str, Any], name: str) -> dict[str, Any]:
    for plain, other in (("role", "from"), ("content", "value")):
        if message.get(plain) is not None and message.get(other) is not None:
            raise FormatError(f"{name} with {plain} or {other}", "both")
    has_role = message.get("role") is not None or "from" not in message
    spelled = "value" if message.get("content") is None and "value" in message else "content"
    role, content = message.get("role" if has_role else "from"), message.get(spelled)
    speaker = role.strip().lower() if isinstance(role, str) else role
    if not has_role and not (isinstance(speaker, str) and speaker in SPEAKERS):
        raise FormatError(f"{name}.from as one of {', '.join(SPEAKERS)}", repr(speaker))
    if not has_role and content is None and not message.get("tool_calls"):
        raise FormatError(f"a string {name}.value", "null")
    made = {field: value for field, value in message.items() if field not in ("from", "value")}
    made["role"] = SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker
    if speaker in CALLERS and content is not None:
        return made | {"content": "", "tool_calls": calls_of(content, f"{name}.{spelled}")}
    if isinstance(content, list):
        content = "".join(_text(part, name) for part in content) if content else None
    return made | {"content": content}


def _text(part: Any, name: str) -> str:
    if not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS or not isinstance(part.get("text"), str):
        got = f"one of type {part['type']!r}" if isinstance(part, dict) and "type" in part else kind(part)
        raise FormatError(f"text parts in {name}.content", got)
    return part["text"]
