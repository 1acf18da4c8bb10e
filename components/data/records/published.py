"""Converts the shapes of published data sets to those of `formats`, by the names of their fields.

Returns a row of any other shape unchanged. Leaves a field of the wrong type to `formats`, if that can report it by
name.
"""

from typing import Any

from components.data.records.dialogue import COLUMNS, calls_of
from components.data.records.errors import FormatError, kind
from components.data.records.spelling import SPEAKERS, respelled
from components.data.records.trees import best_path

_CALLERS = ("function_call", "tool_call")
_KEPT = (*COLUMNS, "reference")  # columns that accompany a dialogue of any shape
ASKED = "TL;DR:"


def demonstration(row: dict[str, Any]) -> dict[str, Any]:
    """{"conversations"} (ShareGPT; also called "conversation", or "messages" of {"from", "value"}), {"instruction",
    "context"?, "response"} (Dolly) and {"prompt": {"text", "role", "replies"}} (an OpenAssistant tree) ->
    messages, or instruction, input and output, along with the other columns.

    Takes the path of best-ranked replies from a tree. Drops an answer at the start of a conversation, which has lost
    its question, as Vicuna's training did.
    """
    kept = {name: row[name] for name in _KEPT if name in row}
    for name in ("conversations", "conversation", "messages"):
        if name in row and (name != "messages" or _has_speakers(row[name])):
            return {"messages": _conversation(row[name], name), **kept}
    if "instruction" in row and "response" in row and "output" not in row:
        asked = {"instruction": row["instruction"], "input": row.get("context", ""), "output": row["response"]}
        return {**asked, **kept}
    if isinstance(row.get("prompt"), dict) and "content" not in row["prompt"]:
        return {"messages": best_path(row["prompt"]), **kept}
    return row


def comparison(row: dict[str, Any]) -> dict[str, Any]:
    """{"info", "summaries", "choice"} (Stiennon et al. 2020) and {"history", "human_ref_A", "human_ref_B", "labels"}
    (SHP; labels 1: A is better, 0: B) -> prompt, completions and ranks; lower ranks are better."""
    kept = {name: row[name] for name in _KEPT if name in row and name != "history"}
    if {"info", "summaries", "choice"} <= row.keys():
        better = _one_of(row, "choice", (0, 1))
        summaries = row["summaries"]
        if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(s, dict) for s in summaries):
            raise FormatError('two "summaries", each {"text"}', kind(summaries))
        answers = [summary.get("text") for summary in summaries]
        return _pair(_to_summarize(row["info"]), answers, better) | kept
    if {"history", "human_ref_A", "human_ref_B", "labels"} <= row.keys():
        better = 1 - _one_of(row, "labels", (0, 1))
        return _pair(row["history"], [row["human_ref_A"], row["human_ref_B"]], better) | kept
    return row


def _has_speakers(turns: Any) -> bool:
    return isinstance(turns, list) and any(isinstance(turn, dict) and "from" in turn for turn in turns)


def _conversation(turns: Any, name: str) -> list[dict[str, Any]]:
    turns = respelled(turns, name)
    if not isinstance(turns, list) or not turns:
        raise FormatError(f'a non-empty list "{name}"', kind(turns))
    messages = [_turn(turn, f"{name}[{i}]") for i, turn in enumerate(turns)]
    orphaned = messages[0].get("role") == "assistant"
    return messages[orphaned:]


def _turn(turn: Any, name: str) -> dict[str, Any]:
    if isinstance(turn, dict) and turn.get("role") is not None:
        return turn
    speaker = turn.get("from") if isinstance(turn, dict) else None
    speaker = speaker.strip().lower() if isinstance(speaker, str) else speaker
    role = "assistant" if speaker in _CALLERS else SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise FormatError(f"{name}.from as one of {', '.join((*SPEAKERS, *_CALLERS))}", repr(speaker))
    if turn.get("value") is None:
        raise FormatError(f"a string {name}.value", "null")
    content = {"content": turn["value"]}
    if speaker in _CALLERS:
        content = {"content": "", "tool_calls": calls_of(turn["value"], f"{name}.value")}
    return {field: value for field, value in turn.items() if field not in ("from", "value")} | content | {"role": role}


def _pair(prompt: Any, answers: list[Any], better: int) -> dict[str, Any]:
    if not isinstance(prompt, str) or not prompt:
        raise FormatError("a non-empty string as the prompt", kind(prompt))
    for answer in answers:
        if not isinstance(answer, str):
            raise FormatError("two answers as strings", kind(answer))
    asked = [{"role": "user", "content": prompt}]
    return {"prompt": asked, "completions": answers, "ranks": [float(i != better) for i in range(2)]}


def _to_summarize(info: Any) -> str:
    """A Reddit post or a news article with its heading, then the question, in the prompt format of those models.

    Source: Stiennon et al. 2020, table 4 of the appendix.
    """
    if not isinstance(info, dict) or not (info.get("post") or info.get("article")):
        raise FormatError('"info" with a "post" or an "article"', kind(info))
    if not info.get("post"):
        parts = [("Title", info.get("title")), ("Article", info["article"])]
    else:
        subreddit = f"r/{info['subreddit']}" if info.get("subreddit") else None
        parts = [("SUBREDDIT", subreddit), ("TITLE", info.get("title")), ("POST", info["post"])]
    return "\n\n".join([*(f"{name}: {value}" for name, value in parts if value), ASKED])


def _one_of(row: dict[str, Any], name: str, choices: tuple[int, ...]) -> int:
    if isinstance(row[name], bool) or row[name] not in choices:
        raise FormatError(f'"{name}" as one of {", ".join(map(str, choices))}', kind(row[name]))
    return row[name]
