"""The record formats: converts raw rows of any accepted shape to one plain shape per format.

Columns that no format names are ignored; a null field counts as absent. Next to any dialogue the columns of `dialogue`
are read: system, system_prompt, history, tools and functions. `known_shapes` lists the fields that identify each
format; `published` converts all but the plain shapes. See `conf/data/` for a data set of each format.
"""

import sys
from typing import Any

from components.data.records import dialogue as dialogues
from components.data.records.dialogue import Message
from components.data.records.dialogue import writable as _writable
from components.data.records.errors import FormatError
from components.data.records.errors import kind as _kind
from components.data.records.known_shapes import DEMONSTRATIONS, LABELS, Shape, unknown
from components.data.records.published import comparison, demonstration, instructed, question
from components.data.records.spelling import are_messages, respelled
from components.data.records.strict_json import parsed
from components.data.records.transcripts import is_transcript, transcript

Record = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")


def text(row: Any) -> Record:
    """{"text"}, or else {"content"} (files of code) -> {"text": str}, not empty."""
    fields = _fields(row, '{"text": …}')
    field = "text" if "text" in fields else "content"
    if field not in fields:
        raise unknown(row, "text")
    value = _string(fields, field)
    if not value:
        raise FormatError(f'a non-empty "{field}"', "an empty string")
    return {"text": value}


def chat(row: Any) -> Record:
    """A demonstration -> {"messages": [{"role", "content", …}, …], "tools"?, "preferred"?}, at least one by the
    assistant.

    Accepts {"messages"}; {"prompt", "completion"}, each a string or messages, of which only the completion is a
    target; {"instruction", "input", "output"}, where a non-empty input follows the instruction after a blank line;
    the shapes of `published.demonstration`; and comparisons, of which the prompt and the first of the best answers are
    the demonstration, with "preferred" True. Other fields of a message are those of `dialogue.other_fields`.
    """
    fields = _fields(row, "a demonstration")
    if len(_shapes(fields)) > 1:
        return _same_of_all(fields, _shapes(fields))
    given, row = row, demonstration(fields)
    answered: list[Message] = []  # the messages after a prompt, which are the only targets
    if "messages" in row:
        dialogue = _in_turns(_messages(row["messages"], "messages"), "messages")
    elif "prompt" in row and "completion" in row:
        completion = row["completion"]
        if isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        answered = _messages(completion, "completion")
        dialogue = _in_turns(_prompt(row["prompt"]) + answered, "completion")
    elif "instruction" in row and "output" in row:
        answer = {"role": "assistant", "content": _string(row, "output")}
        dialogue = [*_instruction(row), answer]
    elif _has_answers(comparison(row)):
        return _preferred(given)
    else:
        raise unknown(given, "chat", ", or a comparison")
    if not any(message["content"].strip() or len(message) > 2 for message in dialogue):
        raise FormatError("a dialogue with some text", "only empty messages")
    if all(message["role"] != "assistant" for message in dialogue):
        raise FormatError("at least one message of the assistant", f"{len(dialogue)} messages by others")
    whole = _with_columns(row, dialogue)
    before = len(whole) - len(answered) if answered else 0
    asked = [message | {"weight": 0} if message["role"] == "assistant" else message for message in whole[:before]]
    return {"messages": asked + whole[before:], **dialogues.tools(row)}


def preference(row: Any) -> Record:
    """A comparison -> {"prompt": messages, "completions": [str, …], "ranks": [float, …], "tools"?}, lower ranks better.

    Accepts {"prompt", "chosen", "rejected"}, each a string or messages; {"chosen", "rejected"} as dialogues
    (messages, or one transcript "\\n\\nHuman: … \\n\\nAssistant: …") that share all but the last assistant
    turn; rankings {"prompt", "completions", "ranks"}; and the shapes of `published.comparison`. A string "category",
    or else "source", is kept as the record's "category", for metrics by category. A completion with separate fields
    for thinking or tool calls is a message, not a string.
    """
    given, row = row, _fields(row, "a comparison")
    category = row.get("category", row.get("source"))
    carried = {"category": _writable(category, "category")} if isinstance(category, str) else {}
    row = comparison(row)
    carried |= dialogues.tools(row)
    if "completions" in row and "ranks" in row and ("chosen" in row or "rejected" in row):
        raise FormatError('"chosen" and "rejected", or "completions" and "ranks"', "both")
    if "prompt" in row and "completions" in row and "ranks" in row:
        completions = parsed(row["completions"], "completions")
        if not isinstance(completions, list):
            raise FormatError('a list "completions"', _kind(completions))
        prompt = _unweighted(_prompt(row["prompt"]))
        answers = [_completion(prompt, value, f"completions[{i}]") for i, value in enumerate(completions)]
        ranks = _ranks(parsed(row["ranks"], "ranks"), len(answers))
        return {"prompt": _with_columns(row, prompt), "completions": answers, "ranks": ranks, **carried}
    if not ("chosen" in row and "rejected" in row):
        raise unknown(given, "preference")
    if "prompt" in row:
        prompt = _unweighted(_prompt(row["prompt"]))
        pair = [_completion(prompt, row[name], name) for name in ("chosen", "rejected")]
    else:
        chosen, rejected = (_dialogue(row[name], name) for name in ("chosen", "rejected"))
        prompt = _unweighted(chosen[:-1])
        if prompt != _unweighted(rejected[:-1]):
            raise FormatError('"chosen" and "rejected" that share all but the last turn', "different prompts")
        pair = [_answer(chosen[-1]), _answer(rejected[-1])]
    return {"prompt": _with_columns(row, prompt), "completions": pair, "ranks": [0.0, 1.0], **carried}


def prompts(row: Any) -> Record:
    """A question -> {"prompt": messages, "reference": str | None, "tools"?}.

    Accepts {"prompt", "reference"?}, {"question"} and {"query"}, and demonstrations and comparisons, of which it keeps
    the prompt: everything before the last answer. The answer of a demonstration is its reference, unless it has one.
    """
    given, row = row, question(comparison(demonstration(_fields(row, "a prompt"))))
    if "prompt" in row:
        prompt = _prompt(row["prompt"])
    elif "messages" in row:
        prompt = _before_last_answer(_in_turns(_messages(row["messages"], "messages"), "messages"))
    elif "instruction" in row:
        prompt = _instruction(row)
    elif "chosen" in row:
        prompt = _before_last_answer(_dialogue(row["chosen"], "chosen"))
    else:
        raise unknown(given, "prompts", ", or the fields of a demonstration or a comparison")
    if prompt[-1] == {"role": "user", "content": ""}:
        raise FormatError("a question that is not empty", "an empty string")
    reference = _string(row, "reference") if "reference" in row else _demonstrated(row)
    return {"prompt": _with_columns(row, _unweighted(prompt)), "reference": reference, **dialogues.tools(row)}


def _demonstrated(row: Record) -> str | None:
    """The text of a demonstration's last answer; None for any other record, such as a labeled answer."""
    if any(name in row for name in LABELS):
        return None
    answer = row.get("completion", row.get("output") if "instruction" in row else row.get("messages"))
    if isinstance(answer, list) and answer and isinstance(answer[-1], dict) and answer[-1].get("role") == "assistant":
        answer = answer[-1].get("content")
    return answer if isinstance(answer, str) and answer else None


def _fields(row: Any, what: str) -> Record:
    if not isinstance(row, dict):
        raise FormatError(f"{what} as a JSON object", _kind(row))
    return {name: value for name, value in row.items() if value is not None}


def _string(row: Record, name: str) -> str:
    if not isinstance(row[name], str):
        raise FormatError(f'a string "{name}"', _kind(row[name]))
    return _writable(row[name], name)


def _shapes(row: Record) -> list[Shape]:
    return [shape for shape in DEMONSTRATIONS if row.keys() >= set(shape)]


def _same_of_all(row: Record, shapes: list[Shape]) -> Record:
    """The demonstration that a row contains in several shapes, if all agree apart from weights."""
    others = {name for shape in shapes for name in shape}
    made = [chat({name: row[name] for name in row if name not in others or name in shape}) for shape in shapes]
    if any(_unweighted(record["messages"]) != _unweighted(made[0]["messages"]) for record in made):
        names = " and ".join(", ".join(shape) for shape in shapes)
        raise FormatError("one demonstration in a record", f"different ones in its fields {names}")
    return made[0]


def _has_answers(row: Record) -> bool:
    return row.keys() >= {"chosen", "rejected"} or row.keys() >= {"completions", "ranks"}


def _preferred(row: Record) -> Record:
    """The demonstration that a comparison contains: its prompt, and the first of its best answers as the target."""
    compared = preference(row)
    best = compared["completions"][compared["ranks"].index(min(compared["ranks"]))]
    answer = {"role": "assistant", "content": best} if isinstance(best, str) else best
    tools = {"tools": compared["tools"]} if "tools" in compared else {}
    return chat({"prompt": compared["prompt"], "completion": [answer], **tools}) | {"preferred": True}


def _messages(value: Any, name: str) -> list[Message]:
    value = respelled(value, name)
    if not isinstance(value, list) or not value:
        raise FormatError(f'a non-empty list of messages "{name}"', _kind(value))
    messages = []
    for i, message in enumerate(value):
        if not isinstance(message, dict):
            raise FormatError(f'{name}[{i}] as {{"role", "content"}}', _kind(message))
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise FormatError(f"{name}[{i}].role as one of {', '.join(ROLES)}", repr(role))
        more = dialogues.other_fields(message | {"role": role}, f"{name}[{i}]")
        if content is None and "tool_calls" in more:
            content = ""
        if not isinstance(content, str):
            raise FormatError(f"a string {name}[{i}].content", _kind(content))
        messages.append({"role": role, "content": _writable(content, f"{name}[{i}].content"), **more})
    return messages


def _in_turns(messages: list[Message], name: str) -> list[Message]:
    """The messages, if they are at most one system message, then user and assistant in turns, with tool messages
    between two of the assistant's."""
    roles = [message["role"] for message in messages]
    turns = roles[roles[0] == "system" :]
    before = ["assistant", *turns]
    follows = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}
    if turns[:1] != ["user"] or any(
        last not in follows.get(role, ()) for last, role in zip(before, turns, strict=False)
    ):
        expected = f'"{name}" by user and assistant in turns, starting with the user (after an optional system message)'
        raise FormatError(expected, ", ".join(roles[:8]) + ", …" * (len(roles) > 8))
    return messages


def _with_columns(row: Record, dialogue: list[Message]) -> list[Message]:
    """The dialogue, preceded by the system message and earlier turns in the record's columns."""
    system_texts = dialogues.system(row)
    if dialogue[0]["role"] == "system":
        system_texts["a system message"] = dialogue[0]["content"]
    if len(set(system_texts.values())) > 1:
        raise FormatError("one system text", f"different ones in {' and '.join(system_texts)}")
    history = parsed(row.get(dialogues.HISTORY) or [], dialogues.HISTORY)
    earlier = dialogues.pairs(history) if not are_messages(history) else _messages(history, dialogues.HISTORY)
    system = [{"role": "system", "content": text} for text in dict.fromkeys(system_texts.values())]
    whole = [*system, *earlier, *(message for message in dialogue if message["role"] != "system")]
    dialogues.refuse_media(row, whole)
    return _in_turns(whole, dialogues.HISTORY) if earlier else whole


def _unweighted(messages: list[Message]) -> list[Message]:
    return [{field: value for field, value in message.items() if field != "weight"} for message in messages]


def _answer(message: Message) -> str | Message:
    """A completion: its text, or the whole message if it has other fields."""
    [message] = _unweighted([message])
    return message if message.keys() > {"role", "content"} else message["content"]


def _prompt(value: Any) -> list[Message]:
    """Messages of a prompt; a string is one question, or a transcript if it starts like one."""
    if not isinstance(value, str):
        messages = _in_turns(_messages(value, "prompt"), "prompt")
    elif is_transcript(value):
        messages = _in_turns(transcript(value, "prompt"), "prompt")
        if messages[-1] == {"role": "assistant", "content": ""}:  # "…\n\nAssistant:" asks for it
            messages = messages[:-1]
    elif value:
        messages = [{"role": "user", "content": _writable(value, "prompt")}]
    else:
        raise FormatError('a non-empty "prompt"', "an empty string")
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise FormatError('a "prompt" that ends with a question', "one that ends otherwise")
    return messages


def _instruction(row: Record) -> list[Message]:
    return [{"role": "user", "content": _writable(instructed(row), "instruction")}]


def _completion(prompt: list[Message], value: Any, name: str) -> str | Message:
    """An answer: a string, one message, or the last message of a dialogue that starts with the prompt."""
    if isinstance(value, str):
        return _writable(value, name)
    messages = _messages(value, name)
    if messages[-1]["role"] != "assistant" or _unweighted(messages[:-1]) not in ([], prompt):
        expected = f'"{name}" as one answer, or the prompt and one answer'
        raise FormatError(expected, f"{len(messages)} messages")
    return _answer(messages[-1])


def _dialogue(value: Any, name: str) -> list[Message]:
    """Messages that end with an answer to at least one question."""
    is_text = isinstance(value, str) and not value.lstrip().startswith("[")
    messages = _in_turns(transcript(value, name) if is_text else _messages(value, name), name)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise FormatError(f'"{name}" with a question and a final answer', f"{len(messages)} turns")
    return messages


def _before_last_answer(messages: list[Message]) -> list[Message]:
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if not asked or asked[-1]["role"] == "assistant":
        raise FormatError("a question before the last answer", f"{len(messages)} messages without one")
    return asked


def _ranks(value: Any, expected: int) -> list[float]:
    largest = sys.float_info.max
    numbers = isinstance(value, list) and all(
        isinstance(rank, int | float) and not isinstance(rank, bool) and -largest <= rank <= largest for rank in value
    )
    if not numbers or len(value) != expected or expected < 2:
        wanted = f'"ranks": {expected} numbers for {expected} completions, at least 2'
        raise FormatError(wanted, repr(value)[:60])
    return [float(rank) for rank in value]
