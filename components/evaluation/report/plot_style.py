"""The common look of the report's pictures: colors, a clean frame, dots with intervals."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, QUIET, GRID, PAPER = "#22272e", "#68727d", "#e3e7eb", "#ffffff"
ON_DARK, ON_LIGHT = "#fefefe", "#1b1f24"  # text on a dark and on a light bar, on pages of any color
COLORS = {
    "base": "#8a94a0",
    "pretrain": "#8a94a0",
    "sft": "#3f78b5",
    "rm": "#7a5ea8",
    "ppo": "#d9722e",
    "dpo": "#2f8f6b",
    "kto": "#28348a",
    "simpo": "#7cc254",
    "orpo": "#7a4b2a",
    "distill": "#c93434",
    "grpo": "#b5476b",
    "gspo": "#8c3f8f",
    "cispo": "#d9a3b5",
    "rloo": "#a38a1f",
    "rejection": "#4aa3b5",
    "best-of-16": "#4a525c",
}
DARK = {  # color → its replacement on a dark page
    INK: "#e6e9ed",
    QUIET: "#9aa5b1",
    GRID: "#333a43",
    PAPER: "#14181d",
    "#8a94a0": "#98a2ae",
    "#3f78b5": "#6ba3dd",
    "#7a5ea8": "#a88cd8",
    "#d9722e": "#ec8f52",
    "#2f8f6b": "#4bb78f",
    "#28348a": "#8f9bea",
    "#7a4b2a": "#c39a74",
    "#c93434": "#f07a6d",
    "#b5476b": "#dd7799",
    "#8c3f8f": "#c27fc5",
    "#4a525c": "#c3cad2",
}
OTHER = ("#6f9a3d", "#c98bb0", "#8c6d3f", "#9d7fd1")


def style(axes: Axes, title: str) -> None:
    """The look of all pictures: a left-aligned title, few lines, a faint grid in the background."""
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(QUIET)
    axes.tick_params(colors=QUIET, labelsize=9, length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(QUIET)
        axis.label.set_fontsize(9)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def color_of(name: str, index: int) -> str:
    """The color of a model or stage, or one by its index among the others."""
    return COLORS.get(name, OTHER[index % len(OTHER)])


def legend(figure: Figure, columns: int = 1) -> None:
    """A legend for the first of a figure's axes, below it."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=columns, labelcolor=INK)


def hollow(color: str) -> dict[str, Any]:
    """A small empty circle: the same metric on training prompts."""
    return {"linestyle": "none", "marker": "o", "color": PAPER, "markeredgecolor": color, "markersize": 6}


def dot(axes: Axes, y: float, value: float, interval: list[float] | None, color: str, text: str) -> None:
    """A dot at (value, y) with `text` above it, on a band that spans the interval."""
    if interval:
        axes.plot(interval, [y, y], color=color, linewidth=5, alpha=0.35, solid_capstyle="round")
    axes.plot(value, y, "o", color=color, markersize=10, markeredgecolor=PAPER)
    axes.annotate(text, (value, y), (0, 10), textcoords="offset points", ha="center", color=INK)
