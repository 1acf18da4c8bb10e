"""Cuts a prompt and its answers to fit into the context."""

from collections.abc import Sequence
from typing import NamedTuple

from components.data.records.dialogue import Message
from components.tokenizer.tokenizer import Tokenizer


def fit_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], limit: int, tools: Sequence[Message] | None = None
) -> tuple[list[int], bool]:
    """Ids of a prompt in at most `limit` tokens, and whether it was cut.

    Drops the oldest turns first, each question together with everything up to the next one; keeps a system message and
    the tools. If the last question alone is too long, drops its first tokens; and where what the template and the
    system message put before it takes more than half of the limit, tokens of that too, from its end.
    """
    ids = tokenizer.render_prompt(messages, tools)
    if len(ids) <= limit:
        return ids, False
    first = 1 if messages[0]["role"] == "system" else 0
    system, turns = messages[:first], messages[first:]
    for start in [i for i, message in enumerate(messages) if message["role"] == "user" and i > first]:
        turns = messages[start:]
        ids = tokenizer.render_prompt([*system, *turns], tools)
        if len(ids) <= limit:
            return ids, True
    head = min(_opening(tokenizer, system, turns, tools), (limit + 1) // 2)
    return ids[:head] + ids[len(ids) - (limit - head) :], True


def _opening(
    tokenizer: Tokenizer, system: Sequence[Message], turns: Sequence[Message], tools: Sequence[Message] | None
) -> int:
    """How many ids of a prompt come before the content of its first turn after the system message."""
    one, other = (tokenizer.render_prompt([*system, {**turns[0], "content": text}, *turns[1:]], tools) for text in "ab")
    return next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)


class Fitted(NamedTuple):
    """Ids of a prompt and of its answers; finished: whether each has its end of turn; cut: whether anything was cut."""

    prompt: list[int]
    answers: list[list[int]]
    finished: list[bool]
    cut: bool


def fit_answers(
    tokenizer: Tokenizer,
    prompt: Sequence[Message],
    answers: Sequence[str | Message],
    context: int,
    tools: Sequence[Message] | None = None,
) -> Fitted:
    """A prompt and its answers, each followed by the end of turn.

    If the prompt with its longest answer exceeds `context` tokens, the prompt is cut first, but not below half of the
    context, and then the ends of the answers: a cut answer has no end of turn.
    """
    answer_ids = [tokenizer.answer(answer, tools) for answer in answers]
    longest = max(map(len, answer_ids))
    ids, prompt_cut = fit_prompt(tokenizer, prompt, max(context // 2, context - longest), tools)
    room = context - len(ids)
    finished = [len(answer) <= room for answer in answer_ids]
    return Fitted(ids, [answer[:room] for answer in answer_ids], finished, prompt_cut or not all(finished))
