"""What each stage was predicted to take, and what it took, from its artifact's card."""

from collections.abc import Mapping
from typing import Any

from components.evaluation.report.card import NONE, Results, Table

NOTE = (
    "FLOPs and memory are predicted before the first step, seconds from the first steps. Seconds of training, rollouts "
    "included, without validation; memory of one process at its most."
)
UNITS = {"seconds": (1.0, ",.0f"), "flops": (1.0, ".2e"), "memory": (1e9, ".2f")}


def receipts_table(results: Results) -> Table | None:
    """A row per stage; None if no card has a receipt."""
    receipts: Mapping[str, Mapping[str, Any]] = results.get("receipts") or {}
    rows = [[stage, *(cell for name in UNITS for cell in _cells(receipt, name))] for stage, receipt in receipts.items()]
    columns = ["", "seconds", "took", "FLOPs", "took", "GB", "took"]
    return Table("Predicted and actual", columns, rows, NOTE) if rows else None


def _cells(receipt: Mapping[str, Any], name: str) -> tuple[str, str]:
    """The prediction, and the actual figure with its difference from it in percent."""
    figure, (unit, form) = receipt.get(name) or {}, UNITS[name]
    predicted, actual = figure.get("predicted"), figure.get("actual")
    shown = tuple(NONE if value is None else format(value / unit, form) for value in (predicted, actual))
    if not predicted or actual is None:
        return shown[0], shown[1]
    return shown[0], f"{shown[1]} ({actual / predicted - 1:+.0%})".replace("-", "−")
