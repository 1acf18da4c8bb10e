"""The picture of techniques: what each scores, against the tokens that it takes."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from components.evaluation.report.plot_style import QUIET, color_of, legend, style
from components.evaluation.report.technique_rows import Figures, TechniqueRow, rows_of


def draw(models: Mapping[str, Mapping[str, Figures]]) -> Figure:
    """Score with its interval against all tokens of a prompt, read and sampled, on a logarithmic axis; a panel per
    task, if the prompts have several.

    models: {model: {technique: {"score", "score_ci", "read", "sampled", "tasks"?}}}.
    """
    rows = list(rows_of(models))
    tasks = list(dict.fromkeys(row.task for row in rows))
    across = min(2, len(tasks))
    down = -(-len(tasks) // across)
    figure = Figure(figsize=(9 if across == 1 else 13, 5 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for task, axes in zip(tasks, panels, strict=False):
        style(axes, f"Score, {task}" if task else "Score")
        for i, model in enumerate(models):
            _points(axes, [row for row in rows if (row.model, row.task) == (model, task)], color_of(model, i))
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("tokens per prompt, read and sampled")
        axes.margins(x=0.2, y=0.15)
    for axes in panels[len(tasks) :]:
        axes.remove()
    legend(figure, columns=len(models))
    return figure


def _points(axes: Axes, rows: Sequence[TechniqueRow], color: str) -> None:
    tokens = [row.figures["read"] + row.figures["sampled"] for row in rows]
    scores = [row.figures["score"] for row in rows]
    axes.plot(tokens, scores, "o", color=color, markersize=6, label=rows[0].model if rows else None)
    for row, place, score in zip(rows, tokens, scores, strict=True):
        interval: Any = row.figures["score_ci"]
        if interval:
            axes.plot([place, place], interval, color=color, linewidth=1.2)
        axes.annotate(
            row.technique, (place, score), (4, 4), textcoords="offset points", color=QUIET, fontsize=8, rotation=30
        )
