"""A report's metrics in words: which model won, and what got worse along the way."""

from collections.abc import Callable
from typing import Any

from components.evaluation.report.card import answering, chatting, headline, number, percent, quality_key, with_interval

Results = dict[str, Any]
LEAST = 0.01  # a smaller change does not show in the table

METRICS: tuple[tuple[str, str, Callable, bool], ...] = (  # key, label, formatter, whether more is better
    ("gold", "gold score", number, True),
    ("score", "reward model's score", number, True),
    ("correct", "correct answers", percent, True),
    ("greedy_correct", "correct likeliest answers", percent, True),
    ("wrong_name", "names someone else", percent, False),
    ("polite", "polite", percent, True),
    ("rude", "rude", percent, False),
    ("finished", "ends by itself", percent, True),
    ("distinct", "distinct responses", percent, True),
    ("entropy_per_token", "entropy per token", number, True),
    ("bits_per_byte", "bits per byte of pretraining text", number, False),
)
BEFORE_SFT = ("base", "start")  # a base model, or a chat model that SFT starts from
COMPARABLE = {"base": ("bits_per_byte",)}  # it answers no chat prompt: its other metrics mean something else


def winners(results: Results) -> list[str]:
    """One sentence for each model after sft: whether its answers win against those of sft."""
    return [won(name, metrics) for name, metrics in chatting(results).items() if metrics.get("win_rate_ci")]


def at_equal_length(results: Results) -> list[str]:
    """One sentence for each model after sft: whether its sampled answers also win where length does not count."""
    rows = results.get("against", {}).get("sft", {}).get("sampled", {})
    return [_controlled(name, metrics) for name, metrics in rows.items() if metrics["length_controlled_ci"]]


def _controlled(name: str, metrics: Results) -> str:
    low, high = metrics["length_controlled_ci"]
    verdict = "wins against" if low > 0.5 else "loses to" if high < 0.5 else "is not distinguishable from"
    share = with_interval(metrics["length_controlled"], [low, high], percent)
    lengths = f"{metrics['length']:.0f} tokens against {metrics['other_length']:.0f}"
    return f"At equal length {name} {verdict} sft: {share} of its answers would be better ({lengths})."


def won(name: str, metrics: Results) -> str:
    """Whether a model's answers win against those of sft, judged by the interval of its win rate."""
    low, high = metrics["win_rate_ci"]
    share = with_interval(metrics["win_rate"], metrics["win_rate_ci"], percent)
    if low > 0.5:
        return f"{name} wins against sft: {share} of its answers are better, counting ties as half."
    if high < 0.5:
        return f"{name} did not win, it loses to sft: only {share} of its answers are better."
    return f"{name} did not win: it is not distinguishable from sft, {share} of its answers are better."


def steps(results: Results) -> list[tuple[str, str]]:
    """(before, after) pairs of models: each stage leads from the one to the other."""
    models = answering(results)
    if "sft" not in models:
        return list(zip(models, list(models)[1:]))
    before = [(name, "sft") for name in BEFORE_SFT if name in models]
    return before + [("sft", name) for name in models if name not in (*BEFORE_SFT, "sft")]


def worse(results: Results) -> list[str]:
    """What got worse from one model to the next: one sentence for each step where something did."""
    lost_in = {step: _losses(results, *step) for step in steps(results)}
    lines = [
        f"Got worse from {before} to {after}: {', '.join(lost)}." for (before, after), lost in lost_in.items() if lost
    ]
    return lines or (["No metric in the table got worse from one model to the next."] if lost_in else [])


def _losses(results: Results, before: str, after: str) -> list[str]:
    models = answering(results)
    first, last = models[before], models[after]
    lost = []
    for key, label, show, more in METRICS:
        if before in COMPARABLE and key not in COMPARABLE[before]:
            continue
        old, new = first.get(key), last.get(key)
        if old is None or new is None or (old - new if more else new - old) < LEAST:
            continue
        change = f"{label} {show(old)} → {show(new)}"
        if key == "greedy_correct":  # one answer per prompt: few enough that each one counts
            count = results["sampling"]["prompts"]
            change += f" ({round(old * count)} → {round(new * count)} of {count})"
        lost.append(change)
    return lost


def leader(results: Results) -> str:
    """Which row of the table has the highest gold score (or reward model's score), and how certain that is."""
    key = quality_key(results["models"])
    ranked = sorted(results["models"].items(), key=lambda item: -item[1][key])
    word = "gold score" if key == "gold" else "reward model's score"
    (first, best), *others = ranked
    sentence = f"{first} has the highest {word}, {number(best[key])}"
    if not others:
        return f"{sentence}."
    second, next_best = others[0]
    sentence += f", ahead of {second} with {number(next_best[key])}"
    ends = best.get(f"{key}_ci"), next_best.get(f"{key}_ci")
    if all(ends):
        apart = ends[0][0] > ends[1][1]
        sentence += (
            "; their intervals do not overlap" if apart else "; their intervals overlap, so the order is not certain"
        )
    return f"{sentence}."


def summary(results: Results) -> list[str]:
    """The report in a few sentences: how good the last model is, which models won against sft, and what got worse."""
    lines = (headline(results), *winners(results), *at_equal_length(results), *worse(results))
    return [line for line in lines if line]
