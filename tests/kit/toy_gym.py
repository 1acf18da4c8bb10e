"""A stand-in for reasoning_gym with its interface: sums, and a task whose program evaluates the answer."""

import importlib.metadata
import sys
from dataclasses import dataclass, field
from random import Random
from types import ModuleType
from typing import Any

import pytest

from components.data.sources import procedural


@dataclass
class Settings:
    seed: int = 0
    size: int = 500
    most: int = 9
    signs: list[str] = field(default_factory=lambda: ["+"])

    def __post_init__(self) -> None:
        assert self.most > 0, "most must be positive"


class Sums:
    """Problem i depends on seed + i alone; a partial score for an answer with the sum in it."""

    name = "sums"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = Random(self.settings.seed + index)
        a, b = rng.randint(0, self.settings.most), rng.randint(0, self.settings.most)
        metadata = {"source_dataset": self.name, "source_index": index, "terms": (a, b)}
        sign = self.settings.signs[-1]
        return {"question": f"{a} {sign} {b} = ?", "answer": str(a + b), "metadata": metadata}

    def score_answer(self, answer: str, entry: dict[str, Any]) -> float:
        assert isinstance(entry["metadata"]["terms"], tuple)  # what JSON would have made a list
        if answer == entry["answer"]:
            return 1.0
        return 0.5 if entry["answer"] in answer else 0.0


class Evaluated(Sums):
    """Runs the answer, as some of the real programs do."""

    name = "evaluated"

    def score_answer(self, answer: str, entry: dict[str, Any]) -> float:
        return float(answer == entry["answer"] or eval(answer) == int(entry["answer"]))


class Countdown(Evaluated):
    name = "countdown"


class NQueens(Evaluated):
    name = "n_queens"


KINDS = {kind.name: kind for kind in (Sums, Evaluated, Countdown, NQueens)}


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the stand-in where reasoning_gym would be."""
    gym, factory = ModuleType("reasoning_gym"), ModuleType("reasoning_gym.factory")
    factory.DATASETS = {**KINDS, "codeio": Sums}
    gym.create_dataset = lambda name, **settings: factory.DATASETS[name](Settings(**settings))
    monkeypatch.setitem(sys.modules, "reasoning_gym", gym)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.0")
    for cache in (procedural._dataset, procedural._problem):
        cache.cache_clear()
