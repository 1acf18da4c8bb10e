"""The picture of a verifier's reward: how the rollouts of each method scored while it trained."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from components.evaluation.measure.over_seeds import is_spread, number
from components.evaluation.report.plot_style import color_of, legend, style
from components.evaluation.studies.overoptimization_curves import smoothed

SCORE = "rollout/score"
TITLES = {
    SCORE: "Score of rollouts",
    "rollout/entropy": "Entropy, nats per token",
    "rollout/kl": "KL, nats per response",
}
Curves = Mapping[str, Mapping[str, Mapping[str, Sequence[Any]]]]


def draw(curves: Curves) -> Figure | None:
    """A panel for each of TITLES, with a line for each method; None if there is no curve.

    curves: {method: {tag: {"steps", "values"}}}, of one seed, or with spreads, of which means and intervals are shown.
    Lines are smoothed: a rollout has few prompts.
    """
    if not curves:
        return None
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    for axes, (tag, title) in zip(figure.subplots(1, len(TITLES)), TITLES.items(), strict=True):
        style(axes, title)
        for i, (method, by_tag) in enumerate(curves.items()):
            if tag in by_tag:
                _line(axes, by_tag[tag], method, color_of(method, i))
        axes.set_xlabel("optimizer step")
    legend(figure, columns=len(curves))
    return figure


def _line(axes: Axes, curve: Mapping[str, Sequence[Any]], method: str, color: str) -> None:
    steps, values = [number(step) for step in curve["steps"]], curve["values"]
    axes.plot(steps, smoothed([number(value) for value in values]), color=color, linewidth=1.8, label=method)
    if all(is_spread(value) and value["interval"] for value in values):
        low, high = (smoothed([value["interval"][end] for value in values]) for end in (0, 1))
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
