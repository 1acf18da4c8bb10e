"""Whether each stage of a run has learned something, by the cards of what they made."""

import math
from collections.abc import Mapping
from typing import Any

from components.evaluation.report.card import NONE, Results, Table, number

UNKNOWN = "not measured"
NOTE = (
    "val/loss of held-out records before the first step and of the exported weights; rollout/score of the first "
    "rollouts and of the last."
)


def learned(cards: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each stage's card: stage, verdict, metric, before, after, found, optimizer steps and the exported one; None
    where the card does not say."""
    return [_of_card(stage, card) for stage, card in cards.items()]


def _of_card(stage: str, card: Mapping[str, Any]) -> dict[str, Any]:
    metrics, told = card.get("metrics", {}), card.get("learning", {})
    if "bytes_per_token" in metrics:  # a tokenizer, which makes tokens of bytes
        told = {"verdict": "made", "metric": "bytes per token", "after": metrics["bytes_per_token"]}
    known = {"stage": stage, "verdict": told.get("verdict", UNKNOWN), "found": told.get("found", "")}
    known |= {name: told.get(name) for name in ("metric", "before", "after")}
    return known | {"steps": metrics.get("steps"), "exported": card.get("exported", {}).get("step")}


def learning_table(results: Results) -> Table | None:
    """A row for each stage; None where no card was read."""
    found = results.get("learning")
    if not found:
        return None
    rows = [
        [
            one["stage"],
            one["verdict"],
            one["metric"] or NONE,
            *(number(one[name]) if _is_known(one[name]) else NONE for name in ("before", "after")),
            _steps(one),
        ]
        for one in found
    ]
    told = [f"{one['stage']}: {one['found']}." for one in found if one["found"]]
    return Table("Did each step work?", ["", "result", "by", "before", "after", "step"], rows, " ".join([NOTE, *told]))


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _steps(one: Mapping[str, Any]) -> str:
    """The exported step, of those that were made."""
    if one["steps"] is None:
        return NONE
    return f"{one['exported']:,.0f} of {one['steps']:,.0f}" if one["exported"] is not None else f"{one['steps']:,.0f}"
