"""The picture of an examination: is the reward model's confidence justified, and where is it wrong?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from components.evaluation.report.plot_style import COLORS, QUIET, style

BLUE, ORANGE = COLORS["sft"], COLORS["ppo"]


def draw(examination: Mapping[str, Any], file: Path) -> None:
    """Writes a picture with two panels: the reliability of choices, and shares that should be far above one half."""
    rows = _rows(examination)
    figure = Figure(figsize=(11, max(4.5, 0.24 * len(rows) + 1.4)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
    _reliability(left, examination["ranking"])
    _shares(right, rows)
    figure.savefig(file, dpi=144, facecolor="white", metadata={"Software": None})


def _reliability(axes: Axes, ranking: Mapping[str, Any]) -> None:
    """Accuracy against confidence, one dot per bin, sized by its share of the pairs."""
    style(axes, f"Is its confidence justified? ECE {ranking['ece']:.2f}")
    axes.plot([0.5, 1], [0.5, 1], color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    bins = [b for b in ranking["reliability"] if b["pairs"]]
    confidence, accuracy = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
    axes.plot(confidence, accuracy, color=BLUE, linewidth=1)
    sizes = [30 + 600 * b["pairs"] / ranking["pairs"] for b in bins]
    axes.scatter(confidence, accuracy, sizes, color=BLUE, edgecolors="white", zorder=3)
    for b in bins:
        share = f"{100 * b['pairs'] / ranking['pairs']:.0f}%"
        axes.annotate(
            share,
            (b["confidence"], b["accuracy"]),
            (0, -18),
            textcoords="offset points",
            ha="center",
            color=QUIET,
            fontsize=8,
        )
    axes.set_xlim(0.48, 1.03)
    axes.set_ylim(min([0.4, *(a - 0.08 for a in accuracy)]), 1.03)
    axes.set_xlabel("confidence σ(|margin|); dots: share of pairs")
    axes.set_ylabel("share ranked correctly", color=QUIET)


def _rows(examination: Mapping[str, Any]) -> list[tuple[str, float, list[float], str]]:
    """(label, share, interval, color) of every share that has an interval; an empty label separates groups."""
    ranking = examination["ranking"]
    gap: tuple[str, float, list[float], str] = ("", 0.0, [], "")
    rows = [("accuracy", ranking["accuracy"], ranking["accuracy_ci"], BLUE)]
    for grouping, table in examination["categories"].items():
        rows.append(gap)
        rows += [(f"{grouping}: {name}", s["accuracy"], s["accuracy_ci"], BLUE) for name, s in table.items()]
    rows.append(gap)
    return rows + [
        (f"best answer above: {name}", share["accuracy"], share["accuracy_ci"], ORANGE)
        for name, share in examination["probes"].items()
    ]


def _shares(axes: Axes, rows: list[tuple[str, float, list[float], str]]) -> None:
    """A dot with an interval for every share, against chance."""
    style(axes, "Accuracy by category, and probes")
    axes.axvline(0.5, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    for y, (label, share, interval, color) in enumerate(rows):
        if label:
            axes.plot(interval, [y, y], color=color, linewidth=4, alpha=0.35, solid_capstyle="round")
            axes.plot(share, y, "o", color=color, markersize=6, markeredgecolor="white")
    named = [y for y, row in enumerate(rows) if row[0]]
    axes.set_yticks(named, [rows[y][0] for y in named])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("share, 95% interval over prompts; dashed: chance")
