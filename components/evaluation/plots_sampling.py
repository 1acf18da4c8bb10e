"""Pictures of what many answers to one prompt are worth: best-of-n, majority votes, choosing against saying."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from components.evaluation.card import chatting
from components.evaluation.plot_style import COLOURS, INK, QUIET, colour_of, dot, hollow, style

Results = dict[str, Any]
MARKERS = "osD^vPX"


def best_of_n(results: Results, curves: Any) -> Figure | None:
    """Gold and score against √KL: the curve of best-of-n on sft, a point for every trained model that has a KL."""
    curve, trained = results.get("best_of_n"), results.get("best_of_n_train")
    if not curve:
        return None
    panels = {"gold": "Gold score", "score": "Reward model's score"}
    panels = {key: title for key, title in panels.items() if key in curve}
    figure = Figure(figsize=(5 * len(panels), 4.6), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        style(axes, title)
        x = _distance(curve)
        if f"{key}_ci" in curve and all(curve[f"{key}_ci"]):
            axes.fill_between(x, *zip(*curve[f"{key}_ci"], strict=True), color=COLOURS["sft"], alpha=0.13, lw=0)
        axes.plot(x, curve[key], "o-", color=COLOURS["sft"], markersize=5, label="best of n of sft")
        for place, n in enumerate(curve["n"]):
            where = (x[place], curve[key][place])
            axes.annotate(str(n), where, (0, -13), textcoords="offset points", ha="center", color=QUIET, fontsize=8)
        if trained:
            axes.plot(_distance(trained), trained[key], "--", color=COLOURS["sft"], lw=1.2, zorder=1)
            axes.plot(_distance(trained), trained[key], zorder=2, **hollow(COLOURS["sft"]))
        _models(axes, results, key)
        axes.set_xlabel("√KL to sft, √nats per response")
        axes.margins(x=0.06, y=0.12)
    if trained:
        axes.plot([], [], label="on training prompts", **hollow(QUIET))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=min(len(labels), 4))
    return figure


def _distance(curve: Results) -> list[float]:
    return [math.sqrt(kl) for kl in curve["kl"]]


def _models(axes: Axes, results: Results, key: str) -> None:
    """A point, with its interval, for every model but sft that has a KL to it; an empty one on training prompts."""
    for place, (name, figures) in enumerate(chatting(results).items()):
        colour, marker = colour_of(name, place), MARKERS[place % len(MARKERS)]
        if figures.get("kl") and figures.get(key) is not None:
            x = math.sqrt(max(figures["kl"], 0.0))
            if figures.get(f"{key}_ci"):
                axes.plot([x, x], figures[f"{key}_ci"], color=colour, linewidth=4, alpha=0.3, solid_capstyle="round")
            points: dict[str, Any] = {"markersize": 9, "markeredgecolor": "white", "linestyle": "none", "zorder": 4}
            axes.plot(x, figures[key], marker, color=colour, label=name, **points)
        if figures.get("kl_train") and figures.get(f"{key}_train") is not None:
            x = math.sqrt(max(figures["kl_train"], 0.0))
            axes.plot(x, figures[f"{key}_train"], zorder=3, **{**hollow(colour), "marker": marker})


def majority(results: Results, curves: Any) -> Figure | None:
    """Right answers by how many are drawn: majority vote, and best by the reward model; models' single answers."""
    curve, best, trained = results.get("majority"), results.get("best_of_n", {}), results.get("best_of_n_train", {})
    if not curve:
        return None
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    style(axes, "Right answers by how many sft answers are drawn")
    low, high = zip(*curve["correct_ci"], strict=True)
    axes.fill_between(curve["k"], low, high, color=COLOURS["sft"], alpha=0.13, lw=0)
    axes.plot(curve["k"], curve["correct"], "o-", color=COLOURS["sft"], label="the value that most of them give")
    if "correct" in best:
        axes.plot(
            best["n"],
            best["correct"],
            "s-",
            color=COLOURS["rm"],
            markersize=5,
            label="the one that the reward model likes best",
        )
    if "correct" in trained:
        axes.plot(trained["n"], trained["correct"], "--", color=COLOURS["rm"], lw=1.2, zorder=1)
        axes.plot(trained["n"], trained["correct"], label="the same, on training questions", **hollow(COLOURS["rm"]))
    for place, (name, figures) in enumerate(chatting(results).items()):
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
    rows = [
        (
            "reward model chooses",
            COLOURS["rm"],
            chosen["reward_model"],
            chosen["reward_model_ci"],
            chosen.get("reward_model_train"),
        )
    ]
    for place, (name, figures) in enumerate(chatting(results).items()):
        for key, what in (("greedy_correct", "likeliest answer"), ("correct", "an answer drawn")):
            label, colour = f"{name}: {what}", colour_of(name, place)
            rows.append((label, colour, figures[key], None, figures.get(f"{key}_train")))
    figure = Figure(figsize=(6.8, 0.5 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    style(axes, "Choosing the true statement, and saying it")
    axes.axvline(chosen["chance"], color=QUIET, linewidth=1, linestyle=(0, (4, 3)), label="chance among the values")
    for place, (_, colour, share, interval, on_training) in enumerate(rows):
        dot(axes, place, share, interval, colour, f"{100 * share:.0f} %")
        if on_training is not None:
            axes.plot(on_training, place, **hollow(colour))
    if "reward_model_train" in chosen:
        axes.plot([], [], **hollow(QUIET), label="on training questions")
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.8)
    axes.set_xlim(0, 1.07)
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.set_xlabel(f"share of {chosen['questions']} held-out questions")
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2, labelcolor=INK)
    return figure
