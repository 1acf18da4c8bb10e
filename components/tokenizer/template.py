"""Conversations → segments of text, by the Jinja chat template that is stored with the tokenizer."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jinja2 import TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from components.tokenizer.codec import TokenizerError, check_text

ROLES = ("system", "user", "assistant")

# The roles are written out, not joined from message.role, so that a reader in another library that takes an
# unchecked role cannot be made to write any other special piece.
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

# A placeholder stands for a message's content: private-use characters around its number, then on either side
# a separator that str.strip takes for white space, so that a template which strips the content shows it.
OPEN, CLOSE, EDGE = "\ue000", "\ue001", "\x1c"
PLACEHOLDER = re.compile(f"({EDGE}?){OPEN}([0-9]+){CLOSE}({EDGE}?)")


class Segment(NamedTuple):
    """A run of a rendered conversation: a message's content, or (role None) the template's own text."""

    text: str
    role: str | None


class ChatTemplate:
    """A Jinja template, rendered as transformers renders it, that tells content from its own text.

    special_tokens: bos_token and the like, by the name the template uses.
    Raises TokenizerError for a source that is no Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise_exception
        if any(mark in source for mark in (OPEN, CLOSE, EDGE)):
            raise TokenizerError(
                "the chat template holds U+E000, U+E001 or U+001C; they are kept for placeholders"
            )
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise TokenizerError(f"the chat template is no Jinja, line {error.lineno}: {error}") from None

    def segments(self, messages: Sequence[Mapping], *, add_generation_prompt: bool) -> list[Segment]:
        """The rendered conversation in order; joined, the texts are what Jinja renders.

        A placeholder stands for each content while the template runs, and the output is split there. A
        template that strips the content (`content.strip()`, `content | trim`) is honoured: the segment holds
        the stripped content. Any other change (upper case, escapes, a content written twice or dropped)
        cannot be told from the template's own text and raises TokenizerError, as do messages that are no
        conversation.
        """
        check_messages(messages)
        contents = [message["content"] for message in messages]
        marked = [f"{EDGE}{OPEN}{number}{CLOSE}{EDGE}" for number in range(len(contents))]
        parts = PLACEHOLDER.split(self._render(messages, marked, add_generation_prompt))
        if parts[2::4] != [str(number) for number in range(len(contents))]:
            raise TokenizerError(
                f"the chat template must write each message's content once, in order; of {len(contents)} "
                f"messages, counted from 0, it wrote {parts[2::4]}"
            )
        segments = [Segment(parts[0], None)]
        for message, left, right, after in zip(messages, parts[1::4], parts[3::4], parts[4::4], strict=True):
            content = message["content"] if left else message["content"].lstrip()
            content = content if right else content.rstrip()
            segments += [Segment(content, message["role"]), Segment(after, None)]
        rendered = self._render(messages, contents, add_generation_prompt)
        if "".join(segment.text for segment in segments) != rendered:
            raise TokenizerError(
                "the chat template changes a message's content (or decides by it), so the content cannot be "
                "told from the template's text. Write {{ message.content }} or {{ message.content | trim }}"
            )
        return segments

    def _render(self, messages: Sequence[Mapping], contents: Sequence[str], generation: bool) -> str:
        filled = [
            {"role": message["role"], "content": content}
            for message, content in zip(messages, contents, strict=True)
        ]
        try:
            return self._template.render(
                messages=filled, add_generation_prompt=generation, **self._special_tokens
            )
        except Exception as error:  # a template is somebody's program, and may raise anything
            raise TokenizerError(f"the chat template refuses these messages: {error}") from error


def _raise_exception(message: str) -> None:
    """What templates call to refuse a conversation (the name is transformers')."""
    raise TokenizerError(message)


def check_messages(messages: Sequence[Mapping]) -> None:
    """Raises TokenizerError unless: at most one system message, first; then user and assistant in turns."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise TokenizerError(f"messages: expected a list with at least one message, got {messages!r}")
    for number, message in enumerate(messages):
        what = f"message {number}"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise TokenizerError(f"{what}: expected {{'role': …, 'content': …}}, got {message!r}")
        if message["role"] not in ROLES:
            raise TokenizerError(f"{what}: unknown role {message['role']!r}, expected {', '.join(ROLES)}")
        check_text(message["content"], f"{what}, content")
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or turns != [("user", "assistant")[number % 2] for number in range(len(turns))]:
        raise TokenizerError(
            "messages: expected at most one system message, first, then user, assistant, user, … in turns; "
            f"got {', '.join(roles)}"
        )
