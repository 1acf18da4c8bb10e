"""Pictures of what many answers to one prompt are worth: best-of-n, majority votes, choosing against answering."""

import math
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from components.evaluation.report.card import chatting, number, percent
from components.evaluation.report.pictures import Panel
from components.evaluation.report.plot_style import COLORS, PAPER, QUIET, color_of, dot, hollow, legend, style

Results = dict[str, Any]
MARKERS = "osD^vPX"


def best_of_n(results: Results, curves: Any) -> list[Panel]:
    """Gold and score against √KL: the best-of-n curve of sft, and a point for every trained model that has a KL."""
    curve = results.get("best_of_n")
    if not curve:
        return []
    titles = {"gold": "Gold score", "score": "Reward model's score"}
    return [
        Panel(partial(_best_of_n, results, key, title), _best_of_n_alt(results, key, title), 4.2)
        for key, title in titles.items()
        if key in curve
    ]


def _best_of_n_alt(results: Results, key: str, title: str) -> str:
    curve, models = results["best_of_n"], chatting(results)
    steps = [f"n={n} {number(value)}" for n, value in zip(curve["n"], curve[key], strict=True)]
    points = [
        f"{name} {number(metrics[key])} at KL {number(metrics['kl'])}"
        for name, metrics in models.items()
        if metrics.get("kl") and metrics.get(key) is not None
    ]
    return f"{title} against the square root of KL. Best of n of sft: {', '.join(steps)}. {'; '.join(points)}".rstrip()


def _best_of_n(results: Results, key: str, title: str, figure: Figure) -> None:
    curve, trained = results["best_of_n"], results.get("best_of_n_train")
    axes = figure.subplots()
    style(axes, title)
    x = _distance(curve)
    if f"{key}_ci" in curve and all(curve[f"{key}_ci"]):
        low, high = zip(*curve[f"{key}_ci"], strict=True)
        axes.fill_between(x, low, high, color=COLORS["sft"], alpha=0.13, lw=0)
    axes.plot(x, curve[key], "o-", color=COLORS["sft"], markersize=5, label="best of n of sft")
    for n, point in zip(curve["n"], zip(x, curve[key], strict=True), strict=True):
        axes.annotate(str(n), point, (0, -13), textcoords="offset points", ha="center", color=QUIET, fontsize=8)
    if trained:
        axes.plot(_distance(trained), trained[key], "--", color=COLORS["sft"], lw=1.2, zorder=1)
        axes.plot(_distance(trained), trained[key], zorder=2, **hollow(COLORS["sft"]))
    _models(axes, results, key)
    axes.set_xlabel("√KL to sft, √nats per response")
    axes.margins(x=0.06, y=0.12)
    if trained:
        axes.plot([], [], label="on training prompts", **hollow(QUIET))
    legend(figure, columns=2)


def _distance(curve: Results) -> list[float]:
    return [math.sqrt(kl) for kl in curve["kl"]]


def _models(axes: Axes, results: Results, key: str) -> None:
    """A point, with its interval, for every model with a KL to sft; a hollow one for training prompts."""
    for i, (name, metrics) in enumerate(chatting(results).items()):
        color, marker = color_of(name, i), MARKERS[i % len(MARKERS)]
        if metrics.get("kl") and metrics.get(key) is not None:
            x = math.sqrt(max(metrics["kl"], 0.0))
            if metrics.get(f"{key}_ci"):
                axes.plot([x, x], metrics[f"{key}_ci"], color=color, linewidth=4, alpha=0.3, solid_capstyle="round")
            points: dict[str, Any] = {"markersize": 9, "markeredgecolor": PAPER, "linestyle": "none", "zorder": 4}
            axes.plot(x, metrics[key], marker, color=color, label=name, **points)
        if metrics.get("kl_train") and metrics.get(f"{key}_train") is not None:
            x = math.sqrt(max(metrics["kl_train"], 0.0))
            axes.plot(x, metrics[f"{key}_train"], zorder=3, **{**hollow(color), "marker": marker})


def majority(results: Results, curves: Any) -> list[Panel]:
    """Accuracy by number of samples: majority vote, and best by the reward model; models' single answers."""
    curve = results.get("majority")
    if not curve:
        return []
    steps = ", ".join(f"k={k} {percent(value)}" for k, value in zip(curve["k"], curve["correct"], strict=True))
    return [Panel(partial(_majority, results), f"Correct by majority of k answers of sft: {steps}", 4.6)]


def _majority(results: Results, figure: Figure) -> None:
    curve, best, trained = results["majority"], results.get("best_of_n", {}), results.get("best_of_n_train", {})
    axes = figure.subplots()
    style(axes, "Correct answers by number of samples")
    low, high = zip(*curve["correct_ci"], strict=True)
    axes.fill_between(curve["k"], low, high, color=COLORS["sft"], alpha=0.13, lw=0)
    axes.plot(curve["k"], curve["correct"], "o-", color=COLORS["sft"], label="the most common value")
    if "correct" in best:
        label = "the reward model's favorite"
        axes.plot(best["n"], best["correct"], "s-", color=COLORS["rm"], markersize=5, label=label)
    if "correct" in trained:
        axes.plot(trained["n"], trained["correct"], "--", color=COLORS["rm"], lw=1.2, zorder=1)
        axes.plot(trained["n"], trained["correct"], label="the same, training prompts", **hollow(COLORS["rm"]))
    for i, (name, metrics) in enumerate(chatting(results).items()):
        label = "sft: likeliest answer" if name == "sft" else f"{name}: one answer"
        level = metrics["greedy_correct"] if name == "sft" else metrics["correct"]
        axes.axhline(level, color=color_of(name, i), linewidth=1.4, linestyle=(0, (4, 3)), label=label)
    axes.set_xscale("log", base=2)
    ticks = sorted({1, *curve["k"]})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(f"answers of sft to each of {results['sampling']['prompts']} held-out questions")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol="%"))
    axes.set_ylim(top=1.03)
    legend(figure)


def choice(results: Results, curves: Any) -> list[Panel]:
    """The reward model's choice among the statements of all values, next to the models' own answers."""
    chosen = results.get("choice")
    if not chosen:
        return []
    rows = [("reward model chooses", COLORS["rm"], "reward_model", chosen)]
    for i, (name, metrics) in enumerate(chatting(results).items()):
        for key, what in (("greedy_correct", "likeliest answer"), ("correct", "sampled answer")):
            rows.append((f"{name}: {what}", color_of(name, i), key, metrics))
    shares = ", ".join(f"{label} {percent(metrics[key])}" for label, _, key, metrics in rows)
    return [Panel(partial(_choice, chosen, rows), f"Correct on held-out questions: {shares}", 0.5 * len(rows) + 1.6)]


def _choice(chosen: Results, rows: list[tuple[str, str, str, Results]], figure: Figure) -> None:
    axes = figure.subplots()
    style(axes, "Choosing and answering")
    axes.axvline(chosen["chance"], color=QUIET, linewidth=1, linestyle=(0, (4, 3)), label="chance among the values")
    for i, (_, color, key, metrics) in enumerate(rows):
        interval = chosen["reward_model_ci"] if metrics is chosen else None
        dot(axes, i, metrics[key], interval, color, f"{100 * metrics[key]:.0f}%")
        if metrics.get(f"{key}_train") is not None:
            axes.plot(metrics[f"{key}_train"], i, **hollow(color))
    if "reward_model_train" in chosen:
        axes.plot([], [], **hollow(QUIET), label="on training questions")
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.8)
    axes.set_xlim(0, 1.07)
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol="%"))
    axes.set_xlabel(f"share of {chosen['questions']} held-out questions")
    legend(figure)
