"""What techniques score, as rows of a table: of one run, or over seeds."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Figures = Mapping[str, Any]


class TechniqueRow(NamedTuple):
    """task: "" for all prompts together. figures: score, gain, read, sampled …; numbers, or spreads over seeds."""

    model: str
    task: str
    technique: str
    figures: Figures


def rows_of(models: Mapping[str, Mapping[str, Figures]]) -> Iterator[TechniqueRow]:
    """A row per model, task and technique, in this order; of prompts without tasks, one per model and technique.

    models: {model: {technique: figures}}; a technique's `tasks` has its figures by task, if the prompts have several.
    """
    for model, techniques in models.items():
        tasks = list(dict.fromkeys(task for one in techniques.values() for task in one.get("tasks", {})))
        for task in tasks or [""]:
            for name, one in techniques.items():
                figures = one["tasks"].get(task) if tasks else one
                if figures:
                    yield TechniqueRow(model, task, name, figures)
