"""Removes what the assistant thinks before it answers from records."""

import re
from typing import Any

from components.data.records.dialogue import Message
from components.data.records.errors import FormatError
from components.tokenizer.turns import THINKING

_PAIR = re.compile(r"<(think|thinking|thought|reason|reasoning)>.*?</\1>\s*|\[THINK\].*?\[/THINK\]\s*", re.DOTALL)


def without_thinking(record: dict[str, Any]) -> dict[str, Any]:
    """A record of `formats` without the reasoning_content and the <think>…</think> of the assistant's messages.

    If a message begins within its thinking, as an answer to a prompt that ends with <think>, everything up to
    </think> is removed. Raises FormatError for a tag without its counterpart, and if nothing is left of a message.
    """
    made = dict(record)
    for field in ("messages", "prompt"):
        if field in record:
            made[field] = [_message(message, f"{field}[{i}]") for i, message in enumerate(record[field])]
    if "completions" in record:
        made["completions"] = [_answer(said, f"completions[{i}]") for i, said in enumerate(record["completions"])]
    if "completion" in record:
        made["completion"] = _answer(record["completion"], "completion")
    return made


def _answer(said: str | Message, name: str) -> str | Message:
    if isinstance(said, str):
        return _message({"role": "assistant", "content": said}, name)["content"]
    message = _message(said, name)
    return message if message.keys() > {"role", "content"} else message["content"]


def _message(message: Message, name: str) -> Message:
    if message["role"] != "assistant":
        return message
    kept = {field: value for field, value in message.items() if field != "reasoning_content"}
    kept["content"] = _answered(message["content"], name)
    if kept != message and not kept["content"].strip() and "tool_calls" not in kept:
        raise FormatError(f"an answer after the thinking in {name}", "none")
    return kept


def _answered(content: str, name: str) -> str:
    """A content without its thinking."""
    text = _PAIR.sub("", content)
    tags = list(THINKING.finditer(text))
    if not tags:
        return text
    if len(tags) > 1 or not (tags[0][1] or tags[0][3]):
        raise FormatError(f"thinking in {name} that begins and ends, as <think>…</think>", f"{tags[0][0]} alone")
    return text[tags[0].end() :].lstrip()
