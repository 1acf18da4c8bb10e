"""Conversations for which a template writes more, or less, than the contents: thinking, tool calls, tools.

Some templates drop the thinking from earlier answers, or start the answer themselves (`<think>`). The assistant's text
is then the difference of two texts: a prompt, and the conversation up to the end of its answer.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

from components.tokenizer.codec import Segment, TokenizerError, check_text
from components.tokenizer.template import ChatTemplate

Message = Mapping[str, Any]
THINKING = re.compile(r"<(/?)(think|thinking|thought|reason|reasoning)>|\[(/?)(THINK)\]")
SAID = "said"  # the role of text that is not, or not certainly, the template's
MARKS = range(0xE002, 0xF8F0)
PROBE = {"role": "user", "content": "Probe"}


class Answer(NamedTuple):
    """Character range of an example's text that the assistant writes, and whether it is a target."""

    start: int
    stop: int
    counts: bool


class Example(NamedTuple):
    """A conversation, or its start, as one text in segments."""

    segments: list[Segment]
    answers: list[Answer]


class _Turn(NamedTuple):
    """text: from the start of the conversation to the end of this answer, which starts at `start`; after: what the
    template writes next."""

    text: str
    start: int
    after: str
    counts: bool


class Writer:
    """Renders conversations with a template, answer by answer.

    specials: names of the special tokens, which messages never produce. end: the one that ends a turn. closing: what
    the template writes after a content, up to the end of the turn and beyond. prefill: the start of the answer that it
    writes at the end of a prompt. cuts: whether a segment's ids are independent of its neighbors, in which case a
    prompt is cut at the same positions as examples.
    """

    def __init__(
        self, template: ChatTemplate, specials: Sequence[str], *, end: str, closing: str, prefill: str, cuts: bool
    ) -> None:
        self.template, self.end, self.prefill, self.cuts = template, end, prefill, cuts
        cut = closing.index(end) + len(end)
        self.closing, self.after = closing[:cut], closing[cut:]
        self.names = sorted(specials, key=len, reverse=True)
        self.pattern = re.compile("(" + "|".join(map(re.escape, self.names)) + ")")

    def examples(self, messages: Sequence[Message], tools: Sequence[Message] | None) -> list[Example]:
        """The conversation as one example with all its answers, or as several if the template rewrites earlier answers:
        each answer appears once, after the exact text of its prompt.

        Raises TokenizerError if the template omits part of a message.
        """
        conversation = _Conversation(self, messages, tools)
        groups: list[list[_Turn]] = []
        for turn in conversation.turns():
            if groups and turn.text[: turn.start].startswith(groups[-1][-1].text):
                groups[-1].append(turn)
            else:
                groups.append([turn])
        made = [conversation.example(group[-1].text + group[-1].after, group) for group in groups]
        if not groups or messages[-1]["role"] != "assistant":
            whole = conversation.written(len(messages), generation=False)
            if not groups:
                return [conversation.example(whole, [])]
            if whole.startswith(groups[-1][-1].text):
                made[-1] = conversation.example(whole, groups[-1])
        return made

    def prompt(self, messages: Sequence[Message], tools: Sequence[Message] | None) -> list[Segment]:
        """The segments of a conversation up to an answer, cut as in `examples`."""
        conversation = _Conversation(self, messages, tools)
        text = conversation.prompt(len(messages))
        kept = [turn for turn in conversation.turns() if text.startswith(turn.text)] if self.cuts else []
        return conversation.example(text, kept).segments

    @cached_property
    def writes_thinking(self) -> bool:
        """Whether the template writes a message's reasoning_content."""
        return "Probe R" in self._probed({"content": "So", **_thinking("Probe R")})

    @cached_property
    def knows_thinking(self) -> bool:
        """Whether the template supports thinking within the content, as <think>…</think>."""
        return bool(self.prefill) or "</think>" in self.template.source

    @cached_property
    def arguments_as_text(self) -> bool:
        """Whether the template expects the arguments of a call as JSON in a string, not as an object."""
        function = {"name": "probe", "arguments": {"probe": "x"}}
        call = {"content": "", "tool_calls": [{"type": "function", "id": "probe00000", "function": function}]}
        return '"probe"' not in self._probed(call)

    def _probed(self, message: Message) -> str:
        try:
            return self.template.text([PROBE, {"role": "assistant", **message}], add_generation_prompt=False)
        except TokenizerError:
            return ""

    def spoken(self, content: str) -> str | None:
        """What the assistant writes after a prompt for a content that the template would write differently.

        If the prompt starts the thinking, an answer without thinking ends it at once. None for a content without
        thinking.
        """
        tags = list(THINKING.finditer(content))
        if not self.prefill:
            return content if tags else None
        if content.startswith(self.prefill):
            return content.removeprefix(self.prefill)
        opening = self.prefill.strip()
        if content.lstrip().startswith(opening):
            return content.lstrip().removeprefix(opening).lstrip("\n")
        begun = list(THINKING.finditer(self.prefill))
        if tags or any(tag[1] or tag[3] for tag in begun):
            return content
        return f"{begun[-1][0][0]}/{begun[-1][0][1:]}\n\n{content}"


class _Conversation:
    """One conversation, with names of special tokens in it hidden from the template."""

    def __init__(self, writer: Writer, messages: Sequence[Message], tools: Sequence[Message] | None) -> None:
        self.writer, self.tools, self.given = writer, None, messages
        everything = writer.template.source + "".join(_texts([messages, tools or []]))
        check_text(everything, "messages")
        mark = next((chr(code) for code in MARKS if chr(code) not in everything), None)
        if mark is None:
            raise TokenizerError("messages: they contain every character of Unicode's private use area")
        self.mark = mark
        self.messages = [self._hidden(self._shaped(number, message)) for number, message in enumerate(messages)]
        self._written: dict[tuple[int, bool], str] = {}
        if tools:
            bare = self.written(len(messages), generation=False)
            self.tools, self._written = self._hidden(list(tools)), {}
            if self.written(len(messages), generation=False) == bare:
                raise TokenizerError("the chat template does not write the tools; use one that does, or omit the tools")

    def turns(self) -> Iterator[_Turn]:
        """The assistant's messages, each after the text of its prompt."""
        for number, message in enumerate(self.messages):
            if message["role"] == "assistant":
                yield self._turn(number, message)

    def prompt(self, count: int) -> str:
        """The text of a prompt from the first messages; it must contain each of them, except earlier thinking."""
        text = self.written(count, generation=True)
        squeezed, position = _squeezed(text), 0
        for number, message in enumerate(self.messages[:count]):
            parts = [message["content"]] if message["role"] != "assistant" else _without_thinking(message)
            missing, position = _find(squeezed, parts, 0 if message["role"] == "system" else position)
            if missing is not None:
                self._refuse(number, missing)
        return text

    def written(self, count: int, *, generation: bool) -> str:
        """The template's output for the first messages."""
        key = (count, generation)
        if key not in self._written:
            text = self.writer.template.text(self.messages[:count], self.tools, add_generation_prompt=generation)
            self._written[key] = text
        return self._written[key]

    def example(self, text: str, turns: Sequence[_Turn]) -> Example:
        """A text in segments, cut at both ends of every answer."""
        segments: list[Segment] = []
        position, positions = 0, {0: 0}
        for start, stop in pairwise(
            sorted({0, len(text), *(p for turn in turns for p in (turn.start, len(turn.text)))})
        ):
            for number, part in enumerate(self.writer.pattern.split(text[start:stop])):
                if part:
                    segments.append(Segment(part, None) if number % 2 else Segment(self._shown(part), SAID))
                    position += len(segments[-1].text)
            positions[stop] = position
        answers = [Answer(positions[turn.start], positions[len(turn.text)], turn.counts) for turn in turns]
        return Example(segments, answers)

    def _turn(self, number: int, message: Message) -> _Turn:
        writer, counts = self.writer, self.given[number].get("weight", 1) != 0
        prompt, whole = self.prompt(number), self.written(number + 1, generation=False)
        missing: str | None = None
        if whole.startswith(prompt):
            end = whole.find(writer.end, len(prompt))
            if end < 0:
                raise TokenizerError("the chat template must end every assistant's message the same way")
            missing, _ = _find(_squeezed(whole[len(prompt) : end]), _with_thinking(message), 0)
            if missing is None:
                end += len(writer.end)
                return _Turn(whole[:end], len(prompt), whole[end:], counts)
        answer = None if "tool_calls" in message else writer.spoken(message["content"])
        if answer is not None:
            return _Turn(prompt + answer + writer.closing, len(prompt), writer.after, counts)
        if missing is not None:
            self._refuse(number, missing)
        raise TokenizerError(
            f"message {number}: with add_generation_prompt the chat template must write the text before an "
            f"assistant's message; it wrote {self._shown(prompt[-40:])!r}, but with the answer "
            f"{self._shown(whole[len(prompt) - 40 : len(prompt) + 40])!r}"
        )

    def _refuse(self, number: int, part: str) -> NoReturn:
        shown = self._shown(part)
        shown = shown[:40] + "…" * (len(shown) > 40)
        message = self.given[number]
        fields = "".join(f" with {field}" for field in ("reasoning_content", "tool_calls") if field in message)
        raise TokenizerError(
            f"message {number}: the chat template omits or changes {shown!r} in the {message['role']} message"
            f"{fields}. Use a template that writes it"
        )

    def _shaped(self, number: int, message: Message) -> dict[str, Any]:
        """The message in the form that the template expects."""
        made = {field: value for field, value in message.items() if field not in ("weight", "reasoning_content")}
        thinking = message.get("reasoning_content")
        if thinking and self.writer.writes_thinking:
            made |= _thinking(thinking)
        elif thinking and self.writer.knows_thinking:
            made["content"] = f"<think>\n{thinking}\n</think>\n\n{message['content']}"
        elif thinking:
            raise TokenizerError(
                f"message {number}: the chat template does not write reasoning_content. Put it into the content, as "
                "<think>…</think>, or use a template that writes it"
            )
        if "tool_calls" in made and self.writer.arguments_as_text:
            made["tool_calls"] = [_with_text(call) for call in made["tool_calls"]]
        return made

    def _hidden(self, value: Any) -> Any:
        if isinstance(value, str):
            names = self.writer.names
            return self.writer.pattern.sub(lambda match: f"{self.mark}{names.index(match[0])}{self.mark}", value)
        if isinstance(value, Mapping):
            return {self._hidden(key): self._hidden(item) for key, item in value.items()}
        return [self._hidden(item) for item in value] if isinstance(value, list | tuple) else value

    def _shown(self, text: str) -> str:
        return re.sub(f"{self.mark}([0-9]+){self.mark}", lambda match: self.writer.names[int(match[1])], text)


def has_thinking(messages: Sequence[Message]) -> bool:
    """Whether an answer contains a thinking tag."""
    return any(message["role"] == "assistant" and THINKING.search(message["content"]) for message in messages)


def _thinking(text: str) -> dict[str, str]:
    """A message's thinking, under each name that templates use for it."""
    return {"reasoning_content": text, "reasoning": text, "thinking": text}


def _with_text(call: Message) -> dict[str, Any]:
    function = dict(call["function"])
    return dict(call) | {"function": function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _with_thinking(message: Message) -> list[str]:
    """The texts of an answer, in order, without the tags around its thinking."""
    content, ends = message["content"], [0]
    for tag in THINKING.finditer(content):
        ends += tag.span()
    parts = [content[start:stop] for start, stop in zip(ends[::2], [*ends[1::2], len(content)], strict=True)]
    return [message.get("reasoning_content", ""), *parts, *_called(message)]


def _without_thinking(message: Message) -> list[str]:
    last = list(THINKING.finditer(message["content"]))[-1:]
    return [message["content"][last[0].end() if last else 0 :], *_called(message)]


def _called(message: Message) -> list[str]:
    functions = [call["function"] for call in message.get("tool_calls", [])]
    return [text for function in functions for text in (function["name"], *_texts(function["arguments"]))]


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _find(squeezed: str, parts: Sequence[str], position: int) -> tuple[str | None, int]:
    """The first of the parts that is not in the text after the previous ones, or None, and the end of the last one
    found. Ignores white space; a part can also appear as in JSON."""
    for part in parts:
        for spelling in (part, json.dumps(part, ensure_ascii=False)[1:-1], json.dumps(part)[1:-1]):
            wanted = _squeezed(spelling)
            start = squeezed.find(wanted, position)
            if start >= 0:
                position = start + len(wanted)
                break
        else:
            return part, position
    return None, position
