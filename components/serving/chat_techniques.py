"""Techniques in a terminal's chat: read from a line, applied by an engine of the chat's own."""

import json
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from components.artifacts import store
from components.models.heads import CausalLM
from components.prompting.best_of import Score
from components.prompting.named import techniques_of
from components.prompting.technique import Answer, Message, Query, Technique, Tokens, applied
from components.serving.api_errors import ApiError
from components.serving.engine import Engine
from components.serving.generator import EngineGenerator
from components.serving.rows import Options
from components.serving.scoring import scorer_of
from components.serving.served import Served
from components.tokenizer.tokenizer import Tokenizer


class ChatTechniques:
    """The techniques that a chat's answers go through; none at first."""

    def __init__(self, model: CausalLM, tokenizer: Tokenizer) -> None:
        self.served = Served("chat", model, tokenizer)
        self.techniques: Sequence[Technique] = ()

    def set(self, line: str) -> None:
        """Replaces the techniques by those of a line, see `settings_of`; an empty one removes them.

        score=FOLDER makes best_of_n choose by the reward model there. Raises ValueError for what is not a technique.
        """
        self.techniques = techniques_of(settings_of(line), self._scorer)

    def answer(self, messages: Sequence[Message], options: Options) -> tuple[Answer, Tokens]:
        """The answer to a conversation, and what it took.

        Raises ValueError for a conversation that the techniques or the model cannot answer.
        """
        generator = EngineGenerator(self._engine, self.served, options, self._writer)
        query = Query(messages, seed=options.seed, temperature=options.temperature)
        try:
            (answer,), tokens = applied(self.techniques, generator)(query)
            return answer, tokens
        except ApiError as error:
            raise ValueError(error.message) from None
        finally:
            generator.cancel()

    def _scorer(self, folder: str) -> Score:
        path = Path(folder) / "export" if (Path(folder) / "export").is_dir() else Path(folder)
        scorer = Served(folder, store.load_scalar(path), store.load_tokenizer(path))
        return scorer_of(self._engine, scorer, self._writer)

    @cached_property
    def _engine(self) -> Engine:
        assert isinstance(self.served.model, CausalLM)
        return Engine({self.served.name: self.served.model})

    @cached_property
    def _writer(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "writer")


def settings_of(line: str) -> list[Mapping[str, Any]]:
    """Techniques with their settings: "self_consistency samples=9 | constrained regex=[a-z]+". A value is JSON, or else
    the text itself; @FILE stands for the file's lines, which of a .jsonl file are JSON; quotes keep spaces together.
    Raises ValueError for a line that cannot be divided, and OSError for a file that cannot be read."""
    made: list[Mapping[str, Any]] = []
    for part in line.split(" | ") if line.strip() else []:
        name, *settings = shlex.split(part) or [""]
        values: dict[str, Any] = {"name": name}
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not equals:
                raise ValueError(f"{name}: expected NAME=VALUE, got {setting!r}")
            values[key] = _value(value)
        made.append(values)
    return made


def _value(text: str) -> Any:
    if text.startswith("@"):
        lines = [line for line in Path(text[1:]).expanduser().read_text(encoding="utf-8").splitlines() if line.strip()]
        return [json.loads(line) for line in lines] if text.endswith(".jsonl") else lines
    try:
        return json.loads(text)
    except ValueError:
        return text
