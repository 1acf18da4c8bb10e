"""A traced step beside the plan of the same step, as tables and as JSON."""

from typing import Any

from components.planning.device_memory import Memory
from components.planning.plan_report import Sheet, short, size_of
from components.planning.traced_step import Traced
from components.planning.work import Work

PLANNED = {  # by the part of a trace, the fields of a plan's memory
    "weights": ("weights",),
    "gradients": ("gradients",),
    "optimizer": ("optimizer",),
    "gathered": ("gathered", "reducing"),
}


def memory_table(work: Work, traced: Traced, planned: Memory) -> Sheet:
    """Memory of a rank by part, traced and planned, at its peak."""
    parts = {part: sum(getattr(planned, field) for field in fields) for part, fields in PLANNED.items()}
    parts["activations"] = max(planned.activations, planned.left + planned.logits)
    rows = [[part, size_of(traced.parts.get(part, 0)), size_of(size), ""] for part, size in parts.items()]
    rows.append(["peak", size_of(traced.memory), size_of(planned.total), _difference(planned.total, traced.memory)])
    model = f"{short(work.model.parameters)} parameters on {work.devices:,} ranks, {work.at_once:,} tokens at once"
    kept = "layers are recomputed" if work.recompute else "activations are kept"
    note = f"{model}; {kept}; kernels of a CPU. The plan's parts are not all largest at its peak"
    return Sheet("memory of a rank", ["", "traced", "planned", "difference"], rows, note)


def collectives_table(work: Work, traced: Traced, planned: float) -> Sheet:
    """Number and bytes sent by a rank, for each kind of collective in an optimizer step."""
    rows = [[kind, f"{number:,}", size_of(size), "", ""] for kind, (number, size) in traced.collectives.items()]
    rows.append(["all", "", size_of(traced.sent), size_of(planned), _difference(planned, traced.sent)])
    note = f"of {work.accumulation} micro-batches" if work.accumulation > 1 else "of one micro-batch"
    return Sheet("collectives of a step", ["", "number", "sent", "planned", "difference"], rows, note)


def as_json(work: Work, traced: Traced, planned: Memory, planned_sent: float) -> dict[str, Any]:
    """Bytes of a rank, traced and planned; collectives of an optimizer step."""
    return {
        "ranks": work.devices,
        "strategy": work.strategy,
        "parameters": work.model.parameters,
        "memory_bytes": traced.memory,
        "memory_by_part": traced.parts,
        "collectives": {kind: one._asdict() for kind, one in traced.collectives.items()},
        "bytes_sent_per_step": traced.sent,
        "planned": {
            "memory_bytes": planned.total,
            "memory_by_part": planned._asdict(),
            "bytes_sent_per_step": planned_sent,
        },
    }


def _difference(planned: float, traced: float) -> str:
    return f"{planned / traced - 1:+.1%}".replace("-", "−") if traced else ""
