"""Converts the shapes of published data sets to those of `formats`, by the names of their fields.

Returns a row of any other shape unchanged. Leaves a field of the wrong type to `formats`, if that can report it by
name.
"""

from typing import Any

from components.data.records.dialogue import COLUMNS, MEDIA
from components.data.records.errors import FormatError, kind
from components.data.records.known_shapes import ASKED, OWN
from components.data.records.spelling import respelled
from components.data.records.strict_json import parsed
from components.data.records.transcripts import is_transcript, transcript
from components.data.records.trees import best_path

_KEPT = (*COLUMNS, *MEDIA, "reference")  # columns that accompany a dialogue of any shape
_CONVERSATIONS = ("conversations", "conversation")
_QUESTIONS = ("question", "query", "input")
_BESIDE = ("context", "choices", "options", "passage")  # columns that a "question" alone does not make sense without
ASKED_FOR = "TL;DR:"


def demonstration(row: dict[str, Any]) -> dict[str, Any]:
    """Demonstrations of other shapes -> messages, or instruction, input and output, or prompt and completion, along
    with the columns that accompany a dialogue.

    {"conversations"}                       ShareGPT; also "conversation", or "messages" of {"from", "value"}
    {"instruction", "context"?, "response"}     Dolly
    {"prompt": {"text", "role", "replies"}}     an OpenAssistant tree
    {"text"} or {"transcript"}              if it is a transcript
    the shapes of `known_shapes.ASKED`

    Takes the path of best-ranked replies from a tree. Drops an answer at the start of a conversation, which has lost
    its question, as Vicuna's training did.
    """
    kept = {name: row[name] for name in _KEPT if name in row}
    is_pair = row.keys() >= {"chosen", "rejected"}  # of answers to a conversation
    for name in (*_CONVERSATIONS, "messages"):
        if name in row and (_has_speakers(row[name]) if name == "messages" else not is_pair):
            return {"messages": _conversation(row[name], name), **kept}
    if "instruction" in row and "response" in row and "output" not in row:
        asked = {"instruction": row["instruction"], "input": row.get("context", ""), "output": row["response"]}
        return {**asked, **kept}
    if isinstance(row.get("prompt"), dict) and "content" not in row["prompt"]:
        return {"messages": best_path(row["prompt"]), **kept}
    if row.keys() & OWN:
        return row
    for name in ("text", "transcript"):
        if is_transcript(row.get(name)):
            return {"messages": transcript(row[name], name), **kept}
    for asked_as, answered_as in ASKED:
        if asked_as in row and answered_as in row and (asked_as == "prompt" or "prompt" not in row):
            return {"prompt": _question(row, asked_as), "completion": row[answered_as], **kept}
    return row


def comparison(row: dict[str, Any]) -> dict[str, Any]:
    """Comparisons of other shapes -> prompt and completions with ranks (lower ones are better) or chosen and rejected.

    {"info", "summaries", "choice"}         Stiennon et al. 2020
    {"history", "human_ref_A", "human_ref_B", "labels"}     SHP; labels 1: A is better, 0: B
    {"instruction", "completions": [{"response", "overall_score"}, …]}      UltraFeedback
    {"input": {"messages", "tools"?}, "preferred_output", "non_preferred_output"}   OpenAI's files
    {"chosen", "rejected"}, both answers, to "conversations", "instruction" and "input", "question" or "query"
    """
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
    kept |= {"history": row["history"]} if "history" in row else {}
    if {"preferred_output", "non_preferred_output"} <= row.keys():
        return _of_openai(row) | kept
    if "instruction" in row and "completions" in row and "ranks" not in row:
        return _scored(row["instruction"], row["completions"]) | kept
    if {"chosen", "rejected"} <= row.keys() and "prompt" not in row and _is_answer(row["chosen"]):
        asked = _asked(row)
        if asked is not None:
            return {"prompt": asked, "chosen": row["chosen"], "rejected": row["rejected"], **kept}
    return row


def instructed(row: dict[str, Any]) -> Any:
    """The question of {"instruction", "input"?}: a non-empty input follows the instruction after a blank line."""
    question, details = row["instruction"], row.get("input", "")
    for name, value in (("instruction", question), ("input", details)):
        if not isinstance(value, str):
            raise FormatError(f'a string "{name}"', kind(value))
    return f"{question}\n\n{details}" if details else question


def question(row: dict[str, Any]) -> dict[str, Any]:
    """{"question"} or {"query"} without anything else that `formats` reads -> {"prompt"}, with the other columns."""
    name = next((name for name in ("question", "query") if name in row), None)
    return row if name is None or "prompt" in row or row.keys() & OWN else {**row, "prompt": _question(row, name)}


def _question(row: dict[str, Any], name: str) -> Any:
    beside = next((column for column in _BESIDE if name != "prompt" and column in row), None)
    if beside is not None:
        raise FormatError(f'a "{name}" that contains all that is asked', f'a column "{beside}", which is not read')
    return row[name]


def _asked(row: dict[str, Any]) -> Any:
    """What two answers without a prompt reply to: earlier messages, or one question; None if there is none."""
    for name in _CONVERSATIONS:
        if name in row:
            return _conversation(row[name], name)
    if "instruction" in row:
        return [{"role": "user", "content": instructed(row)}]
    asked_as = next((name for name in _QUESTIONS if name in row), None)
    return None if asked_as is None else _question(row, asked_as)


def _is_answer(value: Any) -> bool:
    """Whether a value is a single answer, not a dialogue that contains the question."""
    if isinstance(value, str):
        return not is_transcript(value) and not value.lstrip().startswith("[{")
    return not (isinstance(value, list) and len(value) > 1)


def _has_speakers(turns: Any) -> bool:
    return isinstance(turns, list) and any(isinstance(turn, dict) and "from" in turn for turn in turns)


def _conversation(turns: Any, name: str) -> list[dict[str, Any]]:
    messages = respelled(turns, name)
    if not isinstance(messages, list) or not messages:
        raise FormatError(f'a non-empty list "{name}"', kind(messages))
    orphaned = isinstance(messages[0], dict) and messages[0].get("role") == "assistant"
    return messages[orphaned:]


def _of_openai(row: dict[str, Any]) -> dict[str, Any]:
    asked = parsed(row.get("input"), "input")
    if not isinstance(asked, dict) or "messages" not in asked:
        raise FormatError('"input" as {"messages", "tools"?}', kind(asked))
    tools = {"tools": asked["tools"]} if asked.get("tools") else {}
    answers = {"chosen": row["preferred_output"], "rejected": row["non_preferred_output"]}
    return {"prompt": asked["messages"], **answers, **tools}


def _scored(asked: Any, completions: Any) -> dict[str, Any]:
    """A ranking by scores, of which higher ones are better."""
    completions = parsed(completions, "completions")
    if not isinstance(completions, list) or not all(isinstance(item, dict) for item in completions):
        raise FormatError('"completions" as a list of {"response", "overall_score"}', kind(completions))
    scores = [item.get("overall_score") for item in completions]
    for i, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise FormatError(f"completions[{i}].overall_score as a number", kind(score))
    answers = [item.get("response") for item in completions]
    return {"prompt": asked, "completions": answers, "ranks": [-score for score in scores]}


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
    return "\n\n".join([*(f"{name}: {value}" for name, value in parts if value), ASKED_FOR])


def _one_of(row: dict[str, Any], name: str, choices: tuple[int, ...]) -> int:
    value = int(row[name]) if row[name] in map(str, choices) else row[name]  # as a table in text has it
    if isinstance(value, bool) or value not in choices:
        raise FormatError(f'"{name}" as one of {", ".join(map(str, choices))}', kind(value))
    return value
