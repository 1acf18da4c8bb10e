"""The report's pictures, as panels; a picture with nothing to show has none."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from components.evaluation.report import plots_sampling
from components.evaluation.report.card import number, percent, quality_key
from components.evaluation.report.curves import Curve
from components.evaluation.report.pictures import Panel
from components.evaluation.report.plot_style import (
    COLORS,
    INK,
    ON_DARK,
    ON_LIGHT,
    PAPER,
    QUIET,
    color_of,
    dot,
    hollow,
    legend,
    style,
)

Results = dict[str, Any]
Curves = Mapping[str, Mapping[str, Curve]]

ANSWERS = (  # a partition of all answers: label, color, text color, share from a model's metrics
    ("correct and polite", "#1f7a5c", ON_DARK, lambda f: f["correct_polite"]),
    ("correct, not polite", "#7cc2a4", ON_LIGHT, lambda f: f["correct"] - f["correct_polite"]),
    ("wrong and polite", "#f0b98d", ON_LIGHT, lambda f: f["polite"] - f["correct_polite"]),
    ("wrong, not polite", "#c9562c", ON_DARK, lambda f: 1 - f["correct"] - f["polite"] + f["correct_polite"]),
)
ROLLOUT = {
    "rollout/score": "Score of rollouts",
    "rollout/gold": "Gold score of rollouts",
    "rollout/kl": "KL to sft, nats per response",
    "rollout/entropy": "Entropy, nats per token",
}
LOSS = ("train/loss", "val/loss")


def quality(results: Results, curves: Curves) -> list[Panel]:
    """The gold score (or the reward model's score) with its interval; with a judge, also correct and polite answers."""
    models = results["models"]
    key = quality_key(models)
    if any(metrics.get(key) is None for metrics in models.values()):
        return []
    word = "Gold score" if key == "gold" else "Reward model's score"
    listed = ", ".join(f"{name} {number(metrics[key])}" for name, metrics in models.items())
    height = 0.55 * len(models) + 1.9
    panels = [Panel(partial(_scores, results, key, word), f"{word} by model: {listed}", height)]
    if key == "gold":
        shares = "; ".join(
            f"{name}: " + ", ".join(f"{percent(share(metrics))} {label}" for label, _, _, share in ANSWERS)
            for name, metrics in models.items()
        )
        panels.append(Panel(partial(_answers, models), f"Shares of answers. {shares}", height))
    return panels


def _scores(results: Results, key: str, word: str, figure: Figure) -> None:
    models, sampling = results["models"], results["sampling"]
    axes = figure.subplots()
    style(axes, word)
    axes.set_xlabel(f"{sampling['prompts']} held-out prompts × {sampling['samples_per_prompt']} samples, 95% intervals")
    for i, (name, metrics) in enumerate(models.items()):
        dot(axes, i, metrics[key], metrics.get(f"{key}_ci"), color_of(name, i), number(metrics[key]))
        if metrics.get(f"{key}_train") is not None:
            axes.plot(metrics[f"{key}_train"], i, **hollow(color_of(name, i)))
    if any(metrics.get(f"{key}_train") is not None for metrics in models.values()):
        axes.plot([], [], **hollow(QUIET), label="on training prompts")
        legend(figure)
    axes.margins(x=0.15)
    axes.set_ylim(len(models) - 0.5, -0.7)
    axes.set_yticks(range(len(models)), list(models))


def _answers(models: Mapping[str, Results], figure: Figure) -> None:
    """Stacked bars: every answer is correct or wrong, polite or not."""
    axes = figure.subplots()
    style(axes, "Answers")
    axes.grid(visible=False)
    left = [0.0] * len(models)
    for label, color, ink, share in ANSWERS:
        shares = [share(metrics) for metrics in models.values()]
        axes.barh(range(len(models)), shares, 0.62, left, color=color, label=label, edgecolor=PAPER)
        for i, (start, width) in enumerate(zip(left, shares, strict=True)):
            if width >= 0.1:
                axes.text(start + width / 2, i, f"{100 * width:.0f}%", ha="center", va="center", color=ink)
        left = [start + width for start, width in zip(left, shares, strict=True)]
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_ylim(len(models) - 0.5, -0.7)
    axes.set_yticks(range(len(models)), list(models))
    legend(figure, columns=2)


def reward_model(results: Results, curves: Curves) -> list[Panel]:
    """Reliability: the accuracy of the reward model's choices against its confidence."""
    metrics = results.get("reward_model") or {}
    sets = {"training prompts": "", "held-out prompts": "_heldout"}
    sets = {label: ending for label, ending in sets.items() if f"reliability{ending}" in metrics}
    if not sets:
        return []
    summary = "; ".join(
        f"{label}: accuracy {percent(metrics[f'accuracy{ending}'])}, ECE {number(metrics[f'ece{ending}'])}"
        for label, ending in sets.items()
    )
    alt = f"Share of pairs ranked correctly against the reward model's confidence. {summary}"
    return [Panel(partial(_reliability, metrics, sets), alt, 4.6)]


def _reliability(metrics: Results, sets: Mapping[str, str], figure: Figure) -> None:
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    style(top, "Is its confidence justified?")
    style(bottom, "")
    top.plot([0.5, 1], [0.5, 1], color=QUIET, linewidth=1, linestyle=(0, (4, 3)), label="perfectly calibrated")
    for i, ((label, ending), color) in enumerate(zip(sets.items(), (COLORS["sft"], COLORS["ppo"]), strict=False)):
        bins = metrics[f"reliability{ending}"]
        filled = [b for b in bins if b["pairs"]]
        text = f"{label}: accuracy {100 * metrics[f'accuracy{ending}']:.0f}%, ECE {metrics[f'ece{ending}']:.2f}"
        confidence, accuracy = [b["confidence"] for b in filled], [b["accuracy"] for b in filled]
        top.plot(confidence, accuracy, "o-", color=color, markersize=7, label=text)
        total = metrics[f"pairs{ending}"]
        middles = [(b["low"] + b["high"]) / 2 + (i - (len(sets) - 1) / 2) * 0.035 for b in bins]
        bottom.bar(middles, [b["pairs"] / total for b in bins], width=0.033, color=color)
    top.set_ylabel("share ranked correctly", color=QUIET)
    top.set_ylim(min(0.45, top.get_ylim()[0]), 1.03)
    legend(figure)
    bottom.set_ylabel("share of pairs", color=QUIET)
    bottom.set_xlabel("confidence σ(|margin|)")


def learning(results: Results, curves: Curves) -> list[Panel]:
    """A panel per rollout metric of the on-policy stages, then a loss panel per other stage."""
    panels: list[tuple[str, list[tuple[str, str]]]] = []
    for tag, title in ROLLOUT.items():
        shown = [(stage, tag) for stage, by_tag in curves.items() if tag in by_tag]
        if shown:
            panels.append((title, shown))
    for stage, by_tag in curves.items():
        shown = [(stage, tag) for tag in LOSS if tag in by_tag]
        if shown and not any(tag in by_tag for tag in ROLLOUT):
            panels.append((f"Loss of {stage}", shown))
    return [Panel(partial(_curves, curves, title, shown), _alt(curves, title, shown), 2.6) for title, shown in panels]


def _alt(curves: Curves, title: str, shown: list[tuple[str, str]]) -> str:
    ends = [(_label(stage, tag), curves[stage][tag].values) for stage, tag in shown]
    changes = "; ".join(f"{label} from {number(values[0])} to {number(values[-1])}" for label, values in ends)
    return f"{title} over steps: {changes}"


def _label(stage: str, tag: str) -> str:
    return {"train/loss": "training", "val/loss": "validation"}.get(tag, stage)


def _curves(curves: Curves, title: str, shown: list[tuple[str, str]], figure: Figure) -> None:
    axes = figure.subplots()
    style(axes, title)
    for i, (stage, tag) in enumerate(shown):
        curve = curves[stage][tag]
        axes.plot(curve.steps, curve.values, label=_label(stage, tag), **_line(tag, curve, color_of(stage, i)))
    if len(shown) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    axes.set_xlabel("step")


def _line(tag: str, curve: Curve, color: str) -> dict[str, Any]:
    """Training losses are many and faint, validation losses few and dark."""
    if tag == "train/loss":
        return {"color": color, "linewidth": 0.9, "alpha": 0.6}
    dots = {"marker": "o", "markersize": 3} if tag == "val/loss" or len(curve.steps) == 1 else {}
    return {"color": INK if tag == "val/loss" else color, "linewidth": 1.8, **dots}


def minutes(results: Results, curves: Curves) -> list[Panel]:
    """Minutes per stage."""
    spent = results.get("minutes")
    if not spent:
        return []
    listed = ", ".join(f"{stage} {value:.1f}" for stage, value in spent.items())
    return [Panel(partial(_minutes, spent), f"Minutes per stage: {listed}", 0.36 * len(spent) + 1.0)]


def _minutes(spent: Mapping[str, float], figure: Figure) -> None:
    axes = figure.subplots()
    style(axes, f"Minutes per stage, total {sum(spent.values()):.1f}")
    axes.grid(visible=False)
    colors = [color_of(stage, i) for i, stage in enumerate(spent)]
    bars = axes.barh(list(spent), list(spent.values()), 0.62, color=colors)
    axes.bar_label(bars, fmt="%.1f", padding=4, color=INK, fontsize=9)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.margins(x=0.12)


PICTURES: dict[str, Callable[[Results, Curves], list[Panel]]] = {
    "quality": quality,
    "best_of_n": plots_sampling.best_of_n,
    "majority": plots_sampling.majority,
    "choice": plots_sampling.choice,
    "reward_model": reward_model,
    "curves": learning,
    "minutes": minutes,
}


def panels(results: Results, curves: Curves) -> dict[str, list[Panel]]:
    """{picture: its panels} for the pictures that have something to show."""
    drawn = {name: picture(results, curves) for name, picture in PICTURES.items()}
    return {name: parts for name, parts in drawn.items() if parts}
