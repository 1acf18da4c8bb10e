"""How all pictures of the report look: colours, a frame without clutter, dots with intervals."""

from typing import Any

from matplotlib.axes import Axes

INK, QUIET, GRID = "#22272e", "#68727d", "#e3e7eb"
COLOURS = {
    "base": "#8a94a0",
    "pretrain": "#8a94a0",
    "sft": "#3f78b5",
    "rm": "#7a5ea8",
    "ppo": "#d9722e",
    "dpo": "#2f8f6b",
    "grpo": "#b5476b",
    "rloo": "#a38a1f",
    "rejection": "#4aa3b5",
    "best-of-16": "#4a525c",
}
OTHER = ("#6f9a3d", "#c98bb0", "#8c6d3f", "#9d7fd1")


def style(axes: Axes, title: str) -> None:
    """The look of all pictures: a title to the left, few lines, a faint grid behind."""
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(QUIET)
    axes.tick_params(colors=QUIET, labelsize=9, length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(QUIET)
        axis.label.set_fontsize(9)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def colour_of(name: str, place: int) -> str:
    """A model's or stage's own colour, or one by its place among the others."""
    return COLOURS.get(name, OTHER[place % len(OTHER)])


def hollow(colour: str) -> dict[str, Any]:
    """A small empty circle: the same figure on training prompts."""
    return {"linestyle": "none", "marker": "o", "color": "white", "markeredgecolor": colour, "markersize": 6}


def dot(axes: Axes, place: float, value: float, interval: list[float] | None, colour: str, text: str) -> None:
    """A dot with its figure above it, on a band from the interval's low to its high end."""
    if interval:
        axes.plot(interval, [place, place], color=colour, linewidth=5, alpha=0.35, solid_capstyle="round")
    axes.plot(value, place, "o", color=colour, markersize=10, markeredgecolor="white")
    axes.annotate(text, (value, place), (0, 10), textcoords="offset points", ha="center", color=INK)
