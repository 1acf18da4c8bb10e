"""Fields of messages and records besides role and content: tool calls, thinking, weights, and columns of context.

Reads fields that have one meaning; raises FormatError, by name, for a field that would change the meaning but cannot be
read.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from components.data.records.errors import FormatError, kind
from components.data.records.strict_json import DECODER, parsed, what_is_wrong

Message = dict[str, Any]
SYSTEM, HISTORY, TOOLS = ("system", "system_prompt"), "history", ("tools", "functions")
COLUMNS = (*SYSTEM, HISTORY, *TOOLS)  # of a record, besides its dialogue
REASONING = ("reasoning_content", "reasoning", "thinking")
WEIGHTS = ("weight", "train", "training", "loss")
REFUSED = ("audio", "image", "images", "video", "videos", "refusal", "loss_mask", "mask", "labels")
MEDIA = ("audio", "audios", "image", "images", "video", "videos")  # columns that a tag in a text refers to
READ = {"role", "content", "from", "value", "tool_calls", "function_call", "tool_call_id", "name"}
READ |= {*REASONING, *WEIGHTS, *REFUSED, "id"}


def other_fields(message: Mapping[str, Any], name: str) -> Message:
    """A message's fields besides role and content, under the names that chat templates use.

    tool_calls      of the assistant: [{"type", "function": {"name", "arguments": object}, "id"?}, …]; a
                    function_call becomes one of them
    reasoning_content   what the assistant thinks before it answers; also read from reasoning or thinking
    weight          0 if the assistant's message is not a target, otherwise absent
    tool_call_id, name  of a tool's message
    The name in any other message is dropped. name: the message's location, for errors.
    """
    filled = {field: value for field, value in message.items() if not _is_empty(value)}
    refused = next((field for field in REFUSED if field in filled), None)
    if refused is not None:
        raise FormatError(f"a message without {name}.{refused}, which text cannot hold", kind(filled[refused]))
    made: Message = {}
    if message["role"] == "tool":
        made = {field: _string(filled, field, name) for field in ("tool_call_id", "name") if field in filled}
    calls, thinking = _calls(filled, name), _thinking(filled, name)
    if message["role"] != "assistant" and (calls or thinking):
        raise FormatError(f"tool calls and thinking only in the assistant's messages, not in {name}", message["role"])
    made |= {"tool_calls": calls} if calls else {}
    made |= {"reasoning_content": thinking} if thinking else {}
    if message["role"] == "assistant":
        made |= {} if _counts(message, name) else {"weight": 0}
        unknown = [field for field in filled if field not in READ]
        if unknown and not calls and "content" not in filled:
            raise FormatError(f"an answer in {name}.content", f"an empty one and {unknown[0]!r}, which is not read")
    return made


def refuse_media(row: Mapping[str, Any], messages: Sequence[Message]) -> None:
    """Raises FormatError if a text refers to the contents of a column, as <image> refers to "images"."""
    for column in MEDIA:
        if column in row and not _is_empty(row[column]):
            mark = re.compile(rf"<\|?{column.removesuffix('s')}(_\d+)?\|?>")
            tag = next((match[0] for message in messages if (match := mark.search(message["content"]))), None)
            if tag:
                expected = f'a record without "{column}", which {tag} refers to and text cannot hold'
                raise FormatError(expected, kind(row[column]))


def _is_empty(value: Any) -> bool:
    """Whether a field has no value, as when a table needs the column for other rows."""
    return all(map(_is_empty, value.values())) if isinstance(value, dict) else value in (None, "", [])


def message_texts(message: Message) -> list[str]:
    """The texts of a message, including its thinking and tool calls."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", [])]
    return [text for text in (message["content"], message.get("reasoning_content", ""), *calls) if text]


def unread(row: Any) -> set[str]:
    """Fields of a row's messages that have a value but are not read."""
    lists = [value for value in row.values() if isinstance(value, list)] if isinstance(row, dict) else []
    items = [item for value in lists for item in value if isinstance(item, dict)]
    messages = [item for item in items if "role" in item or "from" in item]
    return {
        field for message in messages for field, value in message.items() if field not in READ and not _is_empty(value)
    }


def tools(row: Mapping[str, Any]) -> dict[str, Any]:
    """{"tools": [{"type": "function", "function": {…}}, …]} from a record's column, or JSON in it; {} without any."""
    given = {name: _json(row[name], name) for name in TOOLS if row.get(name)}
    given = {name: value for name, value in given.items() if value}
    if len(given) > 1:
        raise FormatError('"tools" or "functions"', "both")
    for name, value in given.items():
        listed = [_json(one, name) for one in (value if isinstance(value, list) else [value])]
        if not all(isinstance(one, dict) for one in listed):
            raise FormatError(f'"{name}" as a list of objects', kind(value))
        writable(json.dumps(listed, ensure_ascii=False, default=str), name)
        return {"tools": [one if "function" in one else {"type": "function", "function": one} for one in listed]}
    return {}


def system(row: Mapping[str, Any]) -> dict[str, str]:
    """The system prompts in a record's columns, by column."""
    return {name: _string(row, name) for name in SYSTEM if row.get(name) not in (None, "")}


def pairs(history: Any) -> list[Message]:
    """Earlier turns, from [[question, answer], …]."""
    if not isinstance(history, list):
        raise FormatError(f'"{HISTORY}" as a list of [question, answer]', kind(history))
    turns: list[Message] = []
    for i, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise FormatError(f"{HISTORY}[{i}] as [question, answer]", kind(pair))
        question, answer = (writable(text, f"{HISTORY}[{i}]") for text in pair)
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return turns


def calls_of(value: Any, name: str) -> list[Message]:
    """The tool calls of a turn that contains them as JSON: one object, or a list of them."""
    parsed = _json(value, name)
    return [_call(call, name) for call in (parsed if isinstance(parsed, list) else [parsed])]


def _calls(message: Mapping[str, Any], name: str) -> list[Message]:
    calls = parsed(message.get("tool_calls", []), f"{name}.tool_calls")
    if not isinstance(calls, list):
        raise FormatError(f"a list {name}.tool_calls", kind(calls))
    made = [_call(call, f"{name}.tool_calls[{i}]") for i, call in enumerate(calls)]
    if "function_call" in message:
        if made:
            raise FormatError(f"{name}.tool_calls or {name}.function_call", "both")
        made = [_call(parsed(message["function_call"], f"{name}.function_call"), f"{name}.function_call")]
    return made


def _call(value: Any, name: str) -> Message:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise FormatError(f'{name} as {{"name", "arguments"}}', kind(value))
    arguments = _json(function.get("arguments") or {}, f"{name}.arguments")
    if not isinstance(arguments, dict):
        raise FormatError(f"{name}.arguments as an object", kind(arguments))
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    made |= {"id": value["id"]} if isinstance(value.get("id"), str) else {}
    writable(json.dumps(made, ensure_ascii=False, default=str), name)
    return made


def _thinking(message: Mapping[str, Any], name: str) -> str:
    texts = {_string(message, field, name) for field in REASONING if field in message}
    if len(texts) > 1:
        raise FormatError(f"one of {', '.join(REASONING)} in {name}", "different ones")
    return texts.pop() if texts else ""


def _counts(message: Mapping[str, Any], name: str) -> bool:
    """Whether a message is a target: its weight is 1 or true, or absent."""
    given = {field: message[field] for field in WEIGHTS if message.get(field) is not None}
    for field, value in given.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise FormatError(f"{name}.{field} as 0 or 1 (whether the message is a target)", kind(value))
    if len(set(given.values())) > 1:
        raise FormatError(f"one weight for {name}", ", ".join(f"{field} {value}" for field, value in given.items()))
    return all(given.values())


def _string(row: Mapping[str, Any], field: str, name: str = "") -> str:
    if not isinstance(row[field], str):
        raise FormatError(f"a string {name}.{field}" if name else f'a string "{field}"', kind(row[field]))
    return writable(row[field], f"{name}.{field}" if name else field)


def writable(value: str, name: str) -> str:
    """The text; raises FormatError if it contains a lone surrogate."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f'"{name}" as Unicode text', f"half a surrogate pair at {error.start}") from None
    return value


def _json(value: Any, name: str) -> Any:
    """A value, parsed if it is a string."""
    try:
        return DECODER.decode(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        raise FormatError(f"{name} as JSON", kind(value)) from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name} as JSON", what_is_wrong(error)) from None
