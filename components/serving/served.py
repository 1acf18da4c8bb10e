"""The models that are served, and the prompts that requests become."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

from components.data.records.dialogue import other_fields
from components.data.records.errors import FormatError
from components.models.heads import CausalLM, ScalarModel
from components.serving.api_errors import invalid
from components.serving.choosing import score
from components.serving.constraint import Grammars
from components.serving.rows import Scored
from components.tokenizer.codec import TokenizerError
from components.tokenizer.tokenizer import Tokenizer

Written = TypeVar("Written")
POSITIONS = 128  # hidden states that pass through the head at once when a prompt is scored
MESSAGE = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "refusal", "annotations"}


@dataclass(eq=False)
class Served:
    """A model by the name that clients use. model: CausalLM, or ScalarModel for a reward model."""

    name: str
    model: CausalLM | ScalarModel
    tokenizer: Tokenizer
    folder: Path = Path()
    stage: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def generates(self) -> bool:
        return isinstance(self.model, CausalLM)

    @property
    def room(self) -> int:
        """The context in tokens."""
        return self.model.config.longest

    @cached_property
    def grammars(self) -> Grammars:
        """What holds answers to a format."""
        return Grammars(self.tokenizer, self.model.config.vocab_size)

    @cached_property
    def fingerprint(self) -> str:
        """What the official API calls system_fingerprint: it changes with the tokenizer and the shape."""
        return f"fp_{self.tokenizer.fingerprint[:10]}"

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Ids of a conversation up to the answer. Raises ApiError for messages that cannot be written."""
        return _written(messages, lambda made: self.tokenizer.render_prompt(made, list(tools) or None))

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Ids of a conversation that ends with an answer, its end of turn included."""
        rendered = _written(messages, self.tokenizer.render)
        if messages[-1]["role"] != "assistant":
            raise invalid("the last message must be the assistant's: the answer to score", "messages")
        return rendered.ids[: len(rendered.mask) - rendered.mask[::-1].index(True)]

    def text_prompt(self, prompt: str | list[int]) -> list[int]:
        """Ids of a text to continue, after the token that begins texts; ids are taken as they are."""
        if isinstance(prompt, str):
            try:
                ids = [*self.tokenizer.beginning, *self.tokenizer.encode(prompt)]
            except TokenizerError as error:
                raise invalid(str(error), "prompt") from None
            if not ids:
                raise invalid("the prompt is empty, and this tokenizer has no token that begins a text", "prompt")
            return ids
        size = self.model.config.vocab_size
        if max(prompt) >= size:
            raise invalid(f"prompt: token {max(prompt)} is not below the vocabulary's size, {size}", "prompt")
        return prompt

    def spelled(self, token: int) -> tuple[str, list[int] | None]:
        """A token's name and bytes: its text, "bytes:\\x…" if it is part of a character, or a special token's name."""
        codec = self.tokenizer.codec
        content = codec.bytes_of(token, skip_special=False)
        try:
            return content.decode(), list(content) or None
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content), list(content)

    def prompt_scores(self, ids: Sequence[int], top: int) -> list[Scored]:
        """Each token after the first, by the forward that training uses."""
        assert isinstance(self.model, CausalLM)
        device = next(self.model.parameters()).device
        tokens = torch.tensor(ids, device=device)
        with torch.no_grad():
            hidden = self.model.hidden(tokens[None])[0, :-1]
            scores: list[Scored] = []
            for part, following in zip(hidden.split(POSITIONS), tokens[1:].split(POSITIONS)):
                scores += score(self.model.head(part).float().log_softmax(1), following, [top] * len(part))
        return scores

    def reward(self, ids: Sequence[int]) -> float:
        """The reward model's score at the last token."""
        assert isinstance(self.model, ScalarModel)
        with torch.no_grad():
            return float(self.model(torch.tensor([list(ids)], device=next(self.model.parameters()).device))[0, -1])


def _written(messages: Sequence[Mapping[str, Any]], write: Callable[[list[dict[str, Any]]], Written]) -> Written:
    """What `write` makes of the messages, or, if the template refuses them, of those with neighbors joined."""
    made = [message_of(message, f"messages[{number}]") for number, message in enumerate(messages)]
    try:
        try:
            return write(made)
        except TokenizerError:
            merged = joined(made)
            if len(merged) == len(made):
                raise
            return write(merged)
    except TokenizerError as error:
        raise invalid(str(error), "messages") from None


def joined(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with adjacent ones of one role as one, their texts as paragraphs; results of tools, and calls and
    what follows them, stay apart."""
    made: list[dict[str, Any]] = []
    for message in messages:
        last = made[-1] if made else {}
        if last.get("role") != message["role"] or message["role"] == "tool" or "tool_calls" in last:
            made.append(dict(message))
            continue
        for name in ("content", "reasoning_content"):
            if name in last or name in message:
                last[name] = "\n\n".join(filter(None, (last.get(name), message.get(name))))
        last.update((name, value) for name, value in message.items() if name not in last)
    return made


def message_of(message: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A message of the official API as the chat template reads it. Raises ApiError for what a text cannot hold."""
    for key, value in message.items():
        if key not in MESSAGE and value is not None:
            raise invalid(f"Unrecognized request argument supplied: {name}.{key}", f"{name}.{key}", "unknown_parameter")
    role = message.get("role")
    if not isinstance(role, str):
        raise invalid(f"Missing required parameter: '{name}.role'.", f"{name}.role", "missing_required_parameter")
    content = message.get("content")
    if content is None and (role != "assistant" or not message.get("tool_calls")):
        raise invalid(f"Missing required parameter: '{name}.content'.", f"{name}.content", "missing_required_parameter")
    role = "system" if role == "developer" else role
    made = {"role": role, "content": _text(content, f"{name}.content")}
    try:
        return made | other_fields({**message, "role": role}, name)
    except FormatError as error:
        raise invalid(str(error), name) from None


def _text(content: Any, name: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise invalid(f"Invalid value for {name!r}: expected a string or a list of parts.", name)
    texts = []
    for number, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            got = repr(part.get("type"))[:40] if isinstance(part, dict) else type(part).__name__
            raise invalid(
                f"Invalid value for '{name}[{number}]': expected a part of type 'text', got {got}.", f"{name}[{number}]"
            )
        texts.append(part["text"])
    return "".join(texts)
