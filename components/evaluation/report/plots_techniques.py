"""The picture of techniques: what each scores, against the tokens that it takes."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from components.evaluation.report.plot_style import QUIET, color_of, legend, style


def draw(models: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure:
    """Score with its interval against all tokens of a prompt, read and sampled, on a logarithmic axis.

    models: {model: {technique: {"score", "score_ci", "read", "sampled"}}}.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    style(axes, "Score")
    for i, (model, by_technique) in enumerate(models.items()):
        color = color_of(model, i)
        tokens = [one["read"] + one["sampled"] for one in by_technique.values()]
        scores = [one["score"] for one in by_technique.values()]
        axes.plot(tokens, scores, "o", color=color, markersize=6, label=model)
        for (name, one), place, score in zip(by_technique.items(), tokens, scores, strict=True):
            if one["score_ci"]:
                axes.plot([place, place], one["score_ci"], color=color, linewidth=1.2)
            axes.annotate(name, (place, score), (6, 3), textcoords="offset points", color=QUIET, fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("tokens per prompt, read and sampled")
    axes.margins(x=0.15, y=0.1)
    legend(figure, columns=len(models))
    return figure
