"""Whether each stage of a run learned something, according to its artifact's card."""

import math
from collections.abc import Mapping
from typing import Any

from components.evaluation.report.card import NONE, Results, Table, number
from components.training.endings import UNKNOWN

NOTE = (
    "val/loss on held-out records, before the first step and with the exported weights; for a reward model "
    "val/accuracy, the share of held-out pairs ranked correctly (0.5 by chance), on prompts that training never saw; "
    "rollout/score and rollout/reverse_kl of the first and the last rollouts."
)


def learned(cards: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """From each stage's card: stage, verdict, metric, before, after, found, the optimizer steps and the exported one;
    None if the card does not say."""
    return [_of_card(stage, card) for stage, card in cards.items()]


def _of_card(stage: str, card: Mapping[str, Any]) -> dict[str, Any]:
    metrics, learning = card.get("metrics", {}), card.get("learning", {})
    if "bytes_per_token" in metrics:  # a tokenizer
        learning = {"verdict": "made", "metric": "bytes per token", "after": metrics["bytes_per_token"]}
    row = {"stage": stage, "verdict": learning.get("verdict", UNKNOWN), "found": learning.get("found", "")}
    row |= {name: learning.get(name) for name in ("metric", "before", "after")}
    return row | {"steps": metrics.get("steps"), "exported": card.get("exported", {}).get("step")}


def learning_table(results: Results) -> Table | None:
    """A row per stage; None if no card was read."""
    stages = results.get("learning")
    if not stages:
        return None
    rows = [
        [
            stage["stage"],
            stage["verdict"],
            stage["metric"] or NONE,
            *(number(stage[name]) if _is_known(stage[name]) else NONE for name in ("before", "after")),
            _steps(stage),
        ]
        for stage in stages
    ]
    notes = [NOTE, *(f"{stage['stage']}: {stage['found']}." for stage in stages if stage["found"])]
    return Table("Did each step work?", ["", "result", "metric", "before", "after", "step"], rows, " ".join(notes))


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _steps(stage: Mapping[str, Any]) -> str:
    """The exported step out of all steps."""
    steps, exported = stage["steps"], stage["exported"]
    if steps is None:
        return NONE
    return f"{exported:,.0f} of {steps:,.0f}" if exported is not None else f"{steps:,.0f}"
