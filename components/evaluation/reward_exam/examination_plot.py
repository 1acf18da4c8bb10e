"""The picture of an examination: is the reward model as sure as it should be, and where is it wrong?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from components.evaluation.report.plot_style import COLOURS, QUIET, style

BLUE, ORANGE = COLOURS["sft"], COLOURS["ppo"]


def draw(examination: Mapping[str, Any], file: Path) -> None:
    """Writes a picture of two panels: reliability of the choices, and shares that should be far above one half."""
    rows = _rows(examination)
    figure = Figure(figsize=(11, max(4.5, 0.24 * len(rows) + 1.4)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
    _reliability(left, examination["ranking"])
    _shares(right, rows)
    figure.savefig(file, dpi=144, facecolor="white", metadata={"Software": None})


def _reliability(axes: Axes, ranking: Mapping[str, Any]) -> None:
    """Accuracy against confidence, a dot per bin, as large as its share of the pairs."""
    style(axes, f"As sure as it should be? ECE {ranking['ece']:.2f}")
    axes.plot([0.5, 1], [0.5, 1], color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    full = [one for one in ranking["reliability"] if one["pairs"]]
    confidence, accuracy = [one["confidence"] for one in full], [one["accuracy"] for one in full]
    axes.plot(confidence, accuracy, color=BLUE, linewidth=1)
    sizes = [30 + 600 * one["pairs"] / ranking["pairs"] for one in full]
    axes.scatter(confidence, accuracy, sizes, color=BLUE, edgecolors="white", zorder=3)
    for one in full:
        share = f"{100 * one['pairs'] / ranking['pairs']:.0f} %"
        axes.annotate(
            share,
            (one["confidence"], one["accuracy"]),
            (0, -18),
            textcoords="offset points",
            ha="center",
            color=QUIET,
            fontsize=8,
        )
    axes.set_xlim(0.48, 1.03)
    axes.set_ylim(min([0.4, *(a - 0.08 for a in accuracy)]), 1.03)
    axes.set_xlabel("confidence σ(|margin|); dots: share of pairs")
    axes.set_ylabel("share ranked rightly", color=QUIET)


def _rows(examination: Mapping[str, Any]) -> list[tuple[str, float, list[float], str]]:
    """(label, share, interval, colour) of every share that has an interval; an empty label parts groups."""
    ranking = examination["ranking"]
    gap: tuple[str, float, list[float], str] = ("", 0.0, [], "")
    rows = [("accuracy", ranking["accuracy"], ranking["accuracy_ci"], BLUE)]
    for grouping, table in examination["categories"].items():
        rows.append(gap)
        rows += [(f"{grouping}: {name}", one["accuracy"], one["accuracy_ci"], BLUE) for name, one in table.items()]
    rows.append(gap)
    return rows + [
        (f"best answer above: {name}", one["accuracy"], one["accuracy_ci"], ORANGE)
        for name, one in examination["probes"].items()
    ]


def _shares(axes: Axes, rows: list[tuple[str, float, list[float], str]]) -> None:
    """A dot with its interval per share, against chance."""
    style(axes, "Accuracy by category, and probes")
    axes.axvline(0.5, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    for place, (label, share, interval, colour) in enumerate(rows):
        if label:
            axes.plot(interval, [place, place], color=colour, linewidth=4, alpha=0.35, solid_capstyle="round")
            axes.plot(share, place, "o", color=colour, markersize=6, markeredgecolor="white")
    named = [place for place, row in enumerate(rows) if row[0]]
    axes.set_yticks(named, [rows[place][0] for place in named])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("share, 95 % interval over prompts; dashed: chance")
