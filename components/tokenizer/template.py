"""Conversations → segments of text, by the Jinja chat template that is stored with the tokenizer."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from components.tokenizer.codec import Segment, TokenizerError, check_text
from components.tokenizer.date import strftime_now
from components.tokenizer.sandbox import MAX_SIZE, BoundedSandbox

ROLES = ("system", "user", "assistant")

# The roles are written out, not built from message.role, so that an unchecked role in another library cannot produce
# any other special token.
DEFAULT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message.role == 'system' %}<|system|>"
    "{% elif message.role == 'user' %}<|user|>"
    "{% elif message.role == 'assistant' %}<|assistant|>"
    "{% else %}{{ raise_exception('unknown role ' ~ message.role) }}{% endif %}"
    "{{ message.content }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# For folders from elsewhere without a template: ChatML if its tokens exist, else plain text, which needs only eos. The
# plain one strips, since the space between a role's name and the content belongs to the template.
CHATML_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content | trim }}\n"
    "{% elif message.role == 'user' %}USER: {{ message.content | trim }}\n"
    "{% else %}ASSISTANT: {{ message.content | trim }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

OPEN, CLOSE = "\ue000", "\ue001"  # around a message's number, as a placeholder for its content
PLACEHOLDER = re.compile(f"{OPEN}([0-9]+){CLOSE}")
STRIPPED = (None, "\n", " ", " \n")  # what templates strip from content: all white space, or these


class ChatTemplate:
    """A Jinja template, rendered as in transformers, with content separated from the template's own text.

    special_tokens: bos_token and the like, by the name that the template uses.
    Raises TokenizerError for a source that is not Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._known = {"user": True, "assistant": True}  # cache of _knows, by role
        self._environment = BoundedSandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
        )
        self._environment.globals["raise_exception"] = _raise_exception
        self._environment.globals["strftime_now"] = strftime_now
        self._environment.allow("tojson", _to_json)
        if any(mark in source for mark in (OPEN, CLOSE)):
            raise TokenizerError("the chat template contains U+E000 or U+E001, which are reserved for placeholders")
        try:
            self._environment.begin()  # constants are evaluated while compiling
            self._template = self._environment.from_string(source)
        except TemplateSyntaxError as error:
            raise TokenizerError(f"the chat template is not valid Jinja, line {error.lineno}: {error}") from None
        except Exception as error:  # deep nesting, huge numbers: a compiler can raise anything
            raise TokenizerError(f"the chat template cannot be compiled: {_message_of(error)}") from None

    def segments(self, messages: Sequence[Mapping], *, add_generation_prompt: bool) -> list[Segment]:
        """The rendered conversation in order; the concatenated texts are what Jinja renders.

        The template runs with placeholders for the contents, and its output is split at them. A template can strip the
        content (`content.strip()`, `content | trim`, or only line ends or spaces): the segment then has the stripped
        content. It can also write the system message elsewhere, inside a user's. Any other change (upper case, escapes,
        content written twice or dropped) cannot be distinguished from the template's own text and raises
        TokenizerError, as do messages that are not a conversation.
        """
        self.check(messages)
        contents = [message["content"] for message in messages]
        marked = [f"{OPEN}{number}{CLOSE}" for number in range(len(contents))]
        own = PLACEHOLDER.split(self._render(messages, marked, add_generation_prompt))
        order, own = [int(number) for number in own[1::2]], own[::2]
        turns = [number for number in range(len(messages)) if messages[number]["role"] != "system"]
        if sorted(order) != list(range(len(messages))) or [n for n in order if n in turns] != turns:
            raise TokenizerError(
                f"the chat template must write each message's content once, in order; of {len(contents)} "
                f"messages, counted from 0, it wrote {order}"
            )
        rendered = self._render(messages, contents, add_generation_prompt)
        written = _located(rendered, [contents[number] for number in order], own)
        if written is None:
            raise TokenizerError(
                "the chat template changes a message's content (or depends on it), so the content cannot be "
                "distinguished from the template's text. Write {{ message.content }} or {{ message.content | trim }}"
            )
        segments = [Segment(own[0], None)]
        for number, content, after in zip(order, written, own[1:], strict=True):
            segments += [Segment(content, messages[number]["role"]), Segment(after, None)]
        return segments

    def check(self, messages: Sequence[Mapping]) -> None:
        """Raises TokenizerError unless the messages are a conversation in roles that the template distinguishes."""
        given = messages if isinstance(messages, Sequence) else ()
        named = {message.get("role") for message in given if isinstance(message, Mapping)}
        check_messages(messages, [role for role in (*ROLES, "tool") if role not in named or self._knows(role)])

    def _knows(self, role: str) -> bool:
        """Whether a message of this role is written differently from the assistant's; a tool's also from the user's."""
        if role not in self._known:
            self._known[role] = self._is_distinguished(role)
        return self._known[role]

    def _is_distinguished(self, role: str) -> bool:
        written = self._probed_as(role, role)
        others = ("assistant", "user") if role == "tool" else ("assistant",)
        rejected = written is None and role == "tool"  # a template that rejects system messages has its own error
        return not rejected and all(written is None or written != self._probed_as(role, other) for other in others)

    def _probed_as(self, place: str, role: str) -> str | None:
        """The output with a message of `role` at the position of one of role `place`; None if that is rejected."""
        for arguments in ({}, "{}"):  # type: ignore[var-annotated]
            call: Any = {"id": "probe0000", "type": "function", "function": {"name": "probe", "arguments": arguments}}
            message = {"role": role, "content": "said"}
            question, answer = {"role": "user", "content": "Probe"}, {"role": "assistant", "content": "So"}
            turns: list[Mapping[str, Any]] = [message, question, answer]
            if place == "tool":
                result = message | {"tool_call_id": "probe0000", "name": "probe"}
                turns = [question, answer | {"content": "", "tool_calls": [call]}, result, answer]
            with suppress(TokenizerError):
                return self.text(turns, add_generation_prompt=False)
        return None

    def _render(self, messages: Sequence[Mapping], contents: Sequence[str], generation: bool) -> str:
        filled = [
            {"role": message["role"], "content": content} for message, content in zip(messages, contents, strict=True)
        ]
        return self.text(filled, add_generation_prompt=generation)

    def text(
        self, messages: Sequence[Mapping], tools: Sequence[Mapping] | None = None, *, add_generation_prompt: bool
    ) -> str:
        """What Jinja renders from unchanged messages and tools. Raises TokenizerError if the template rejects them."""
        given: dict[str, Any] = dict(self._special_tokens)
        given |= {"messages": messages, "tools": tools, "documents": None}
        given["add_generation_prompt"] = add_generation_prompt
        longest = MAX_SIZE + sum(len(message["content"]) for message in messages)
        self._environment.begin()
        try:
            parts, size = [], 0
            for part in self._template.generate(given):
                parts.append(part)
                size += len(part)
                if size > longest:
                    raise TokenizerError(f"it writes more than {MAX_SIZE} characters of its own")
            return "".join(parts)
        except Exception as error:  # a template is a program and can raise anything
            raise TokenizerError(f"the chat template rejects these messages: {_message_of(error)}") from error


class Generation(Extension):
    """`{% generation %} … {% endgeneration %}`, with which some templates mark the assistant's text."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """The block without the tags, in its own scope as in transformers."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _located(rendered: str, contents: Sequence[str], own: Sequence[str]) -> list[str] | None:
    """The contents as written between the template's own texts, possibly stripped; None if they do not match."""
    if not contents:
        return [] if rendered == own[0] else None

    def fitting(number: int, start: int) -> Iterator[tuple[str, int]]:
        """The forms of a content that match at `start`, with the end of the template's own text after each."""
        for content in _strippings(contents[number]):
            end = start + len(content)
            if rendered.startswith(content, start) and rendered.startswith(own[number + 1], end):
                yield content, end + len(own[number + 1])

    written: list[str] = []
    untried = [fitting(0, len(own[0]))] if rendered.startswith(own[0]) else []  # by content so far, its remaining forms
    while untried:
        content, end = next(untried[-1], (None, 0))
        if content is None:
            untried.pop()
            continue
        written[len(untried) - 1 :] = [content]
        if len(written) < len(contents):
            untried.append(fitting(len(written), end))
        elif end == len(rendered):
            return written
    return None


def _strippings(content: str) -> Iterator[str]:
    """The content, then its forms with either side stripped."""
    lefts = dict.fromkeys([content, *(content.lstrip(characters) for characters in STRIPPED)])
    sides = ((left, characters) for left, characters in itertools.product(lefts, STRIPPED))
    yield from dict.fromkeys([*lefts, *(left.rstrip(characters) for left, characters in sides)])


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """JSON as in transformers' templates: without HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    """What templates call to reject a conversation (the name is transformers')."""
    raise TokenizerError(message)


def _message_of(error: Exception) -> str:
    return str(error) or type(error).__name__


def check_messages(messages: Sequence[Mapping], known: Sequence[str] = ROLES) -> None:
    """Raises TokenizerError unless the messages are at most one system message, then user and assistant in turns, with
    tool messages between two of the assistant's."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise TokenizerError(f"messages: expected a list with at least one message, got {messages!r}")
    for number, message in enumerate(messages):
        what = f"message {number}"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise TokenizerError(f"{what}: expected {{'role': …, 'content': …}}, got {message!r}")
        if message["role"] not in known:
            raise TokenizerError(f"{what}: unknown role {message['role']!r}, expected {', '.join(known)}")
        check_text(message["content"], f"{what}, content")
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    follows = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}
    after = zip(["assistant", *turns], turns, strict=False)
    if turns[:1] != ["user"] or any(last not in follows.get(role, ()) for last, role in after):
        raise TokenizerError(
            "messages: expected at most one system message, first, then user, assistant, user, … in turns; "
            f"got {', '.join(roles)}"
        )
