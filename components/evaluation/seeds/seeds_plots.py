"""The pictures of a sweep's summary: means with 95% intervals over seeds, and a faint dot for each seed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from components.evaluation.measure.over_seeds import most_seeds
from components.evaluation.report import plots_rewards, plots_techniques
from components.evaluation.report.card import number
from components.evaluation.report.plot_style import COLORS, QUIET, color_of, dot, style
from components.evaluation.studies import overoptimization_plots

Summary = Mapping[str, Any]
BLUE = COLORS["sft"]


def draw(summary: Summary, folder: Path, prefix: str = "") -> dict[str, str]:
    """Draws every picture that has something to show; returns {file name: caption}."""
    drawn = {}
    for name, (picture, caption) in PICTURES.items():
        figure = picture(summary)
        if figure is not None:
            figure.savefig(folder / f"{prefix}{name}", dpi=144, facecolor="white", metadata={"Software": None})
            drawn[f"{prefix}{name}"] = caption
    return drawn


def gold(summary: Summary) -> Figure | None:
    """The gold score of every model."""
    models = (summary.get("report") or {}).get("models") or {}
    spreads = {name: metrics["gold"] for name, metrics in models.items() if "gold" in metrics}
    return _rows(spreads, f"Gold score on held-out prompts, {_seeds(summary, 'report')}") if spreads else None


def optimum(summary: Summary) -> Figure | None:
    """Fraction of the exact optimum, by method."""
    methods = (summary.get("optimum") or {}).get("methods") or {}
    spreads = {name: metrics["fraction_of_optimum"] for name, metrics in methods.items()}
    if not spreads:
        return None
    figure = _rows(spreads, f"Share of the exact optimum reached, {_seeds(summary, 'optimum')}")
    axes = figure.axes[0]
    axes.axvline(1, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def curves(summary: Summary) -> Figure | None:
    """Left: gold of best-of-n. Right: accuracy of the majority of k."""
    report = summary.get("report") or {}
    best, votes = report.get("best_of_n") or {}, report.get("majority") or {}
    panels = [panel for panel in (("gold", best), ("correct", votes)) if panel[0] in panel[1]]
    if not panels:
        return None
    figure = Figure(figsize=(5 * len(panels), 3.8), layout="constrained")
    for axes, (name, curve) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        numbers = [n["mean"] for n in curve["n" if name == "gold" else "k"]]
        title = "Gold of the best of n" if name == "gold" else "Correct by majority of k answers"
        style(axes, f"{title}, {_seeds(summary, 'report')}")
        _line(axes, numbers, curve[name], BLUE)
        axes.set_xlabel("n, answers of sft to choose from" if name == "gold" else "k")
        if name == "correct":
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def scaling(summary: Summary) -> Figure | None:
    """Accuracy of reward models against the number of comparisons."""
    sizes = summary.get("scaling") or {}
    accuracies = {int(size): metrics["accuracy"] for size, metrics in sizes.items() if metrics.get("accuracy")}
    if not accuracies:
        return None
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    style(axes, f"More comparisons, a better reward model, {_seeds(summary, 'scaling')}")
    _line(axes, list(accuracies), list(accuracies.values()), BLUE)
    axes.axhline(0.5, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        "chance", (max(accuracies), 0.5), (0, 3), textcoords="offset points", ha="right", color=QUIET, fontsize=8
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("training comparisons")
    axes.set_ylabel("accuracy on held-out questions", color=QUIET)
    return figure


def overoptimization(summary: Summary) -> Figure | None:
    """Gold and proxy against √KL, means over seeds."""
    study = summary.get("overoptimization")
    return overoptimization_plots.draw(study) if study else None


def rewards(summary: Summary) -> Figure | None:
    """Score, entropy and KL of rollouts, by method."""
    return plots_rewards.draw((summary.get("rewards") or {}).get("curves") or {})


def techniques(summary: Summary) -> Figure | None:
    """Score of techniques against the tokens that they take, by task."""
    models = (summary.get("rewards") or {}).get("models") or {}
    measured = {
        model: {name: _means(figures) for name, figures in one["techniques"].items()}
        for model, one in models.items()
        if "techniques" in one
    }
    return plots_techniques.draw(measured) if measured else None


def _means(figures: Summary) -> dict[str, Any]:
    """A technique's figures with the interval over seeds in place of that over prompts."""
    shown = {key: figures[key]["mean"] for key in ("score", "read", "sampled")}
    tasks = {task: _means(one) for task, one in figures.get("tasks", {}).items()}
    return {**shown, "score_ci": figures["score"]["interval"], **({"tasks": tasks} if tasks else {})}


def _rows(spreads: Mapping[str, Summary], title: str) -> Figure:
    figure = Figure(figsize=(7, 0.5 * len(spreads) + 1.2), layout="constrained")
    axes = figure.subplots()
    style(axes, title)
    for i, (name, spread) in enumerate(spreads.items()):
        color = color_of(name, i)
        dot(axes, i, spread["mean"], spread["interval"], color, number(spread["mean"]))
        values = [value for value in spread["values"] if value is not None]
        axes.plot(values, [i] * len(values), "o", color=color, markersize=3, alpha=0.7)
    axes.set_ylim(len(spreads) - 0.5, -0.8)
    axes.set_yticks(range(len(spreads)), list(spreads))
    axes.margins(x=0.1)
    return figure


def _line(axes: Axes, numbers: Sequence[float], spreads: Sequence[Summary], color: str) -> None:
    """Means on a logarithmic axis, their intervals as a band, and seeds as dots."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(numbers)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{n:,.0f}" for n in numbers])
    axes.plot(numbers, [spread["mean"] for spread in spreads], "o-", color=color, markersize=6)
    ends = [spread["interval"] or [spread["mean"]] * 2 for spread in spreads]
    axes.fill_between(
        numbers, [low for low, _ in ends], [high for _, high in ends], color=color, alpha=0.18, linewidth=0
    )
    for n, spread in zip(numbers, spreads, strict=True):
        values = [value for value in spread["values"] if value is not None]
        axes.plot([n] * len(values), values, "o", color=color, markersize=2.5, alpha=0.6)


def _seeds(summary: Summary, kind: str) -> str:
    count = most_seeds(summary[kind])
    return f"{count} seeds" if count > 1 else "one seed"


PICTURES: dict[str, tuple[Callable[[Summary], Figure | None], str]] = {
    "gold.png": (gold, "gold score by model, over seeds"),
    "best_of_n.png": (curves, "best-of-n and majority vote, over seeds"),
    "rewards.png": (rewards, "score, entropy and KL of rollouts while training, over seeds"),
    "techniques.png": (techniques, "score of techniques against the tokens that they take, over seeds"),
    "optimum.png": (optimum, "fraction of the exact optimum, over seeds"),
    "overoptimization.png": (overoptimization, "gold and proxy against the square root of KL, means over seeds"),
    "scaling.png": (scaling, "reward model's accuracy by number of comparisons, over seeds"),
}
