"""What the figures of a report say in words: who won, and what got worse on the way."""

from collections.abc import Callable
from typing import Any

from components.evaluation.report.card import answering, chatting, headline, number, percent, quality_key, with_interval

Results = dict[str, Any]
LEAST = 0.01  # a smaller change does not show in the table

FIGURES: tuple[tuple[str, str, Callable, bool], ...] = (  # key, label, how it is shown, whether more is better
    ("gold", "gold score", number, True),
    ("score", "reward model's score", number, True),
    ("correct", "right answers", percent, True),
    ("greedy_correct", "right likeliest answers", percent, True),
    ("wrong_name", "names somebody else", percent, False),
    ("polite", "polite", percent, True),
    ("rude", "rude", percent, False),
    ("finished", "ends by itself", percent, True),
    ("distinct", "distinct responses", percent, True),
    ("entropy_per_token", "entropy per token", number, True),
    ("bits_per_byte", "bits per byte of pretraining text", number, False),
)
COMPARABLE = {"base": ("bits_per_byte",)}  # the base model answers no chat prompt: its other figures mean other things


def winners(results: Results) -> list[str]:
    """For each model after sft, whether its answers win against those of sft: a sentence each."""
    return [won(name, figures) for name, figures in chatting(results).items() if figures.get("win_rate_ci")]


def won(name: str, figures: Results) -> str:
    """Whether a model's answers win against those of sft, by the interval of how often they do."""
    low, high = figures["win_rate_ci"]
    share = with_interval(figures["win_rate"], figures["win_rate_ci"], percent)
    if low > 0.5:
        return f"{name} wins against sft: {share} of its answers are worth more, ties counting half."
    if high < 0.5:
        return f"{name} did not win, it loses against sft: only {share} of its answers are worth more."
    return f"{name} did not win: it cannot be told apart from sft, {share} of its answers are worth more."


def steps(results: Results) -> list[tuple[str, str]]:
    """(before, after) of the models that a stage leads from one to the other."""
    models = answering(results)
    if "sft" not in models:
        return list(zip(models, list(models)[1:]))
    before = [("base", "sft")] if "base" in models else []
    return before + [("sft", name) for name in models if name not in ("base", "sft")]


def worse(results: Results) -> list[str]:
    """What got worse from one model to the next: a sentence for each step with such a figure."""
    found = {step: _losses(results, *step) for step in steps(results)}
    lines = [
        f"Got worse from {before} to {after}: {', '.join(lost)}." for (before, after), lost in found.items() if lost
    ]
    return lines or (["No figure of the table got worse from one model to the next."] if found else [])


def _losses(results: Results, before: str, after: str) -> list[str]:
    models = answering(results)
    first, last = models[before], models[after]
    lost = []
    for key, label, show, more in FIGURES:
        if before in COMPARABLE and key not in COMPARABLE[before]:
            continue
        one, other = first.get(key), last.get(key)
        if one is None or other is None or (one - other if more else other - one) < LEAST:
            continue
        told = f"{label} {show(one)} → {show(other)}"
        if key == "greedy_correct":  # one answer to a prompt: so few that each counts
            count = results["sampling"]["prompts"]
            told += f" ({round(one * count)} → {round(other * count)} of {count})"
        lost.append(told)
    return lost


def leader(results: Results) -> str:
    """Who has the highest gold score (or the reward model's) of all rows of the table, and how surely."""
    key = quality_key(results["models"])
    ranked = sorted(results["models"].items(), key=lambda item: -item[1][key])
    word = "gold score" if key == "gold" else "reward model's score"
    (first, best), *others = ranked
    told = f"{first} has the highest {word}, {number(best[key])}"
    if not others:
        return f"{told}."
    second, next_best = others[0]
    told += f", before {second} with {number(next_best[key])}"
    ends = best.get(f"{key}_ci"), next_best.get(f"{key}_ci")
    if all(ends):
        apart = ends[0][0] > ends[1][1]
        told += (
            "; their intervals do not overlap" if apart else "; their intervals overlap, so the order is not certain"
        )
    return f"{told}."


def summary(results: Results) -> list[str]:
    """The report in a few sentences: how far the last model got, who won against sft, and what got worse."""
    return [line for line in (headline(results), *winners(results), *worse(results)) if line]
