"""Pictures of what many answers to one prompt are worth: best-of-n, majority votes, choosing against saying."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from components.evaluation.card import answering
from components.evaluation.plot_style import COLOURS, INK, QUIET, colour_of, dot, hollow, style

Results = dict[str, Any]
MARKERS = "osD^vPX"


def best_of_n(results: Results, curves: Any) -> Figure | None:
    """Gold and score against √KL: the curve of best-of-n on sft, a point for every trained model that has a KL."""
    curve = results.get("best_of_n")
    if not curve:
        return None
    panels = {"gold": "Gold score", "score": "Reward model's score"}
    panels = {key: title for key, title in panels.items() if key in curve}
    figure = Figure(figsize=(5 * len(panels), 4.4), layout="constrained")
    distance = [math.sqrt(kl) for kl in curve["kl"]]
    for axes, (key, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        style(axes, title)
        if f"{key}_ci" in curve and all(curve[f"{key}_ci"]):
            axes.fill_between(distance, *zip(*curve[f"{key}_ci"], strict=True), color=COLOURS["sft"], alpha=0.13, lw=0)
        axes.plot(distance, curve[key], "o-", color=COLOURS["sft"], markersize=5, label="best of n of sft")
        for place, n in enumerate(curve["n"]):
            where = (distance[place], curve[key][place])
            axes.annotate(str(n), where, (0, -13), textcoords="offset points", ha="center", color=QUIET, fontsize=8)
        _models(axes, results, key)
        axes.set_xlabel("√KL to sft, √nats per response")
        axes.margins(x=0.06, y=0.12)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=min(len(labels), 6))
    return figure


def _models(axes: Axes, results: Results, key: str) -> None:
    """A point, with its interval, for every model but sft that has a KL to it."""
    for place, (name, figures) in enumerate(answering(results).items()):
        if not figures.get("kl") or figures.get(key) is None:
            continue
        x, colour = math.sqrt(max(figures["kl"], 0.0)), colour_of(name, place)
        if figures.get(f"{key}_ci"):
            axes.plot([x, x], figures[f"{key}_ci"], color=colour, linewidth=4, alpha=0.3, solid_capstyle="round")
        marker = MARKERS[place % len(MARKERS)]
        axes.plot(x, figures[key], marker, color=colour, markersize=9, markeredgecolor="white", ls="none", label=name)


def majority(results: Results, curves: Any) -> Figure | None:
    """Right answers by how many are drawn: majority vote, and best by the reward model; models' single answers."""
    curve, best = results.get("majority"), results.get("best_of_n") or {}
    if not curve:
        return None
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    style(axes, "Right answers by how many sft answers are drawn")
    axes.fill_between(curve["k"], *zip(*curve["correct_ci"], strict=True), color=COLOURS["sft"], alpha=0.13, lw=0)
    axes.plot(curve["k"], curve["correct"], "o-", color=COLOURS["sft"], label="the value that most of them give")
    if "correct" in best:
        axes.plot(best["n"], best["correct"], "s-", color=COLOURS["rm"], markersize=5,
                  label="the one that the reward model likes best")  # fmt: skip
    for place, (name, figures) in enumerate(answering(results).items()):
        if figures.get("kl") is not None:
            of = "sft: likeliest answer" if name == "sft" else f"{name}: one answer"
            level = figures["greedy_correct"] if name == "sft" else figures["correct"]
            axes.axhline(level, color=colour_of(name, place), linewidth=1.4, linestyle=(0, (4, 3)), label=of)
    axes.set_xscale("log", base=2)
    ticks = sorted({1, *curve["k"]})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(f"answers drawn to each of {results['sampling']['prompts']} held-out questions")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.set_ylim(top=1.03)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2, labelcolor=INK)
    return figure


def choice(results: Results, curves: Any) -> Figure | None:
    """The reward model's choice among all values' statements beside what the models say themselves."""
    chosen = results.get("choice")
    if not chosen:
        return None
    rows = [("reward model chooses", COLOURS["rm"], chosen["reward_model"], chosen["reward_model_ci"],
             chosen.get("reward_model_train"))]  # fmt: skip
    for place, (name, figures) in enumerate(answering(results).items()):
        if name == "base":
            continue
        for key, what in (("greedy_correct", "likeliest answer"), ("correct", "an answer drawn")):
            label, colour = f"{name}: {what}", colour_of(name, place)
            rows.append((label, colour, figures[key], None, figures.get(f"{key}_train")))
    figure = Figure(figsize=(6.8, 0.5 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    style(axes, "Choosing the true statement, and saying it")
    axes.axvline(chosen["chance"], color=QUIET, linewidth=1, linestyle=(0, (4, 3)), label="chance among the values")
    for place, (_, colour, share, interval, on_training) in enumerate(rows):
        if on_training is not None:
            axes.plot(on_training, place, **hollow(colour))
        dot(axes, place, share, interval, colour, f"{100 * share:.0f} %")
    if "reward_model_train" in chosen:
        axes.plot([], [], **hollow(QUIET), label="on training questions")
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.8)
    axes.set_xlim(0, 1.04)
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.set_xlabel(f"share of {chosen['questions']} held-out questions")
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2, labelcolor=INK)
    return figure
