"""What techniques score, as rows of a table: of one run, or over seeds."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from components.evaluation.report.card import Table

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


def table_of(
    models: Mapping[str, Mapping[str, Figures]],
    heads: tuple[str, str],
    note: str,
    cells: Callable[[Figures], list[str]],
) -> Table:
    """A row for each of rows_of(models), which has a task if there are several.

    heads: of the table and its first column. cells: score, gain, tokens read and tokens sampled.
    """
    found = list(rows_of(models))
    by_task = any(row.task for row in found)
    rows = [[row.model, *([row.task] if by_task else []), row.technique, *cells(row.figures)] for row in found]
    title, first = heads
    columns = [first, *(["task"] if by_task else []), "technique", "score", "gain", "tokens read", "sampled"]
    return Table(title, columns, rows, note)
