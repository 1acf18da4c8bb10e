"""The report's pictures."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from components.evaluation import plots_sampling
from components.evaluation.card import number
from components.evaluation.curves import Curve
from components.evaluation.plot_style import COLOURS, INK, QUIET, colour_of, dot, hollow, style

Results = dict[str, Any]
Curves = dict[str, dict[str, Curve]]

STRONG_RIGHT, STRONG_WRONG = "#1f7a5c", "#c9562c"
ANSWERS = (  # parts of all answers: label, colour, share from a model's figures
    ("right and polite", STRONG_RIGHT, lambda f: f["correct_polite"]),
    ("right, not polite", "#7cc2a4", lambda f: f["correct"] - f["correct_polite"]),
    ("wrong and polite", "#f0b98d", lambda f: f["polite"] - f["correct_polite"]),
    ("wrong, not polite", STRONG_WRONG, lambda f: 1 - f["correct"] - f["polite"] + f["correct_polite"]),
)
ROLLOUT = {
    "rollout/score": "score of rollouts",
    "rollout/gold": "gold score of rollouts",
    "rollout/kl": "KL to sft, nats per response",
    "rollout/entropy": "entropy, nats per token",
}
LOSS = ("train/loss", "val/loss")


def draw(results: Results, curves: Curves, folder: Path) -> dict[str, str]:
    """Draws the pictures there is something to show for; returns {file name: caption}."""
    drawn = {}
    for name, (picture, caption) in PICTURES.items():
        figure = picture(results, curves)
        if figure is not None:
            figure.savefig(folder / name, dpi=144, facecolor="white", metadata={"Software": None})
            drawn[name] = caption
    return drawn


def quality(results: Results, curves: Curves) -> Figure | None:
    """Left: gold score (or the reward model's) with its interval. Right, with a judge: right and polite answers."""
    models = results["models"]
    judged = all("gold" in figures for figures in models.values())
    key = "gold" if judged else "score"
    if any(key not in figures for figures in models.values()):
        return None
    figure = Figure(figsize=(10 if judged else 6, 0.55 * len(models) + 2.0), layout="constrained")
    axes = figure.subplots(1, 2 if judged else 1, squeeze=False)[0]
    style(axes[0], "Gold score" if judged else "Reward model's score")
    sampling = results["sampling"]
    held_out = f"{sampling['prompts']} held-out prompts × {sampling['samples_per_prompt']} samples"
    axes[0].set_xlabel(f"{held_out}, 95 % interval over prompts")
    for place, (name, figures) in enumerate(models.items()):
        text = number(figures[key])
        dot(axes[0], place, figures[key], figures.get(f"{key}_ci"), colour_of(name, place), text)
        if figures.get(f"{key}_train") is not None:
            axes[0].plot(figures[f"{key}_train"], place, **hollow(colour_of(name, place)))
    if any(figures.get(f"{key}_train") is not None for figures in models.values()):
        axes[0].plot([], [], **hollow(QUIET), label="on training prompts")
        axes[0].legend(frameon=False, fontsize=8, labelcolor=QUIET, loc="lower left", bbox_to_anchor=(0.5, 0.98))
    axes[0].margins(x=0.12)
    axes[0].set_ylim(len(models) - 0.5, -0.7)
    axes[0].set_yticks(range(len(models)), list(models))
    if judged:
        _answers(axes[1], models)
    return figure


def _answers(axes: Axes, models: Mapping[str, Results]) -> None:
    """Stacked bars: every answer is right or wrong, polite or not."""
    style(axes, "Answers")
    axes.grid(visible=False)
    left = [0.0] * len(models)
    for label, colour, share in ANSWERS:
        shares = [share(figures) for figures in models.values()]
        axes.barh(range(len(models)), shares, 0.62, left, color=colour, label=label, edgecolor="white")
        for place, (start, width) in enumerate(zip(left, shares, strict=True)):
            if width >= 0.07:
                ink = "white" if colour in (STRONG_RIGHT, STRONG_WRONG) else INK
                axes.text(start + width / 2, place, f"{100 * width:.0f} %", ha="center", va="center", color=ink)
        left = [start + width for start, width in zip(left, shares, strict=True)]
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_ylim(len(models) - 0.5, -0.7)
    axes.set_yticks(range(len(models)), list(models))
    axes.legend(
        ncols=4,
        frameon=False,
        fontsize=8,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        handlelength=1,
        columnspacing=1.2,
    )


def reward_model(results: Results, curves: Curves) -> Figure | None:
    """Reliability: how often the reward model's choice is right against how sure it was."""
    figures = results.get("reward_model") or {}
    sets = {"training prompts": "", "held-out prompts": "_heldout"}
    sets = {label: ending for label, ending in sets.items() if f"reliability{ending}" in figures}
    if not sets:
        return None
    figure = Figure(figsize=(6, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    style(top, "Is the reward model as sure as it should be?")
    style(bottom, "")
    top.plot([0.5, 1], [0.5, 1], color=QUIET, linewidth=1, linestyle=(0, (4, 3)), label="perfectly calibrated")
    for place, ((label, ending), colour) in enumerate(zip(sets.items(), ("#3f78b5", "#d9722e"), strict=False)):
        bins = figures[f"reliability{ending}"]
        full = [one for one in bins if one["pairs"]]
        text = f"{label}: accuracy {100 * figures[f'accuracy{ending}']:.0f} %, ECE {figures[f'ece{ending}']:.2f}"
        confidence, accuracy = [b["confidence"] for b in full], [b["accuracy"] for b in full]
        top.plot(confidence, accuracy, "o-", color=colour, markersize=7, label=text)
        total = figures[f"pairs{ending}"]
        middles = [(b["low"] + b["high"]) / 2 + (place - (len(sets) - 1) / 2) * 0.035 for b in bins]
        bottom.bar(middles, [b["pairs"] / total for b in bins], width=0.033, color=colour)
    top.set_ylabel("share ranked rightly", color=QUIET)
    top.set_ylim(min(0.45, top.get_ylim()[0]), 1.03)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=1, labelcolor=INK)
    bottom.set_ylabel("share of pairs", color=QUIET)
    bottom.set_xlabel("confidence σ(|margin|)")
    return figure


def curves_figure(results: Results, curves: Curves) -> Figure | None:
    """A panel per rollout metric of the on-policy stages, then one per stage for its loss."""
    panels: list[tuple[str, list[tuple[str, str]]]] = []
    for tag, title in ROLLOUT.items():
        shown = [(stage, tag) for stage, found in curves.items() if tag in found]
        if shown:
            panels.append((title, shown))
    for stage, found in curves.items():
        shown = [(stage, tag) for tag in LOSS if tag in found]
        if shown and not any(tag in found for tag in ROLLOUT):
            panels.append((f"loss of {stage}", shown))
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (title, shown) in zip(grid, panels, strict=False):
        style(axes, title)
        for place, (stage, tag) in enumerate(shown):
            curve = curves[stage][tag]
            label = tag.split("/")[0] if tag in LOSS else stage
            axes.plot(curve.steps, curve.values, label=label, **_line(tag, curve, colour_of(stage, place)))
        if len(shown) > 1:
            axes.legend(frameon=False, fontsize=8)
        axes.set_xlabel("step")
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return figure


def _line(tag: str, curve: Curve, colour: str) -> dict[str, Any]:
    """Training losses are many and faint, validation losses few and dark."""
    if tag == "train/loss":
        return {"color": colour, "linewidth": 0.9, "alpha": 0.6}
    dots = {"marker": "o", "markersize": 3} if tag == "val/loss" or len(curve.steps) == 1 else {}
    return {"color": INK if tag == "val/loss" else colour, "linewidth": 1.8, **dots}


def minutes(results: Results, curves: Curves) -> Figure | None:
    """Minutes of every stage."""
    spent = results.get("minutes")
    if not spent:
        return None
    figure = Figure(figsize=(6, 0.36 * len(spent) + 1.0), layout="constrained")
    axes = figure.subplots()
    style(axes, f"Minutes per stage, together {sum(spent.values()):.1f}")
    axes.grid(visible=False)
    colours = [COLOURS.get(stage, "#b9c1c9") for stage in spent]
    bars = axes.barh(list(spent), list(spent.values()), 0.62, color=colours)
    axes.bar_label(bars, fmt="%.1f", padding=4, color=INK, fontsize=9)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.margins(x=0.1)
    return figure


PICTURES: dict[str, tuple[Callable[[Results, Curves], Figure | None], str]] = {
    "quality.png": (quality, "quality by model"),
    "best_of_n.png": (plots_sampling.best_of_n, "best-of-n against what training reached"),
    "majority.png": (plots_sampling.majority, "right answers by how many are drawn"),
    "choice.png": (plots_sampling.choice, "choosing the true statement against saying it"),
    "reward_model.png": (reward_model, "reliability of the reward model"),
    "curves.png": (curves_figure, "learning curves"),
    "minutes.png": (minutes, "minutes per stage"),
}
