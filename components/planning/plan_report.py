"""A plan as tables and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from components.models.config import GPTConfig
from components.models.flops import flops_per_token
from components.planning.compute_optimal import CHINCHILLA, shape_for
from components.planning.estimate import DAY, HOUR, Estimate, bytes_sent
from components.planning.hardware import Hardware
from components.planning.remedies import remedy
from components.planning.work import Work
from components.system.memory import USABLE

GB = 1e9
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
PARTS = {  # columns of the memory table
    "weights": ("weights",),
    "grads": ("gradients",),
    "optim.": ("optimizer",),
    "activ.": ("activations",),
    "logits": ("logits",),
    "cache": ("cache",),
    "gathered": ("gathered", "reducing", "gathered_to_sample", "sampler"),
}


class Sheet(NamedTuple):
    """A table: its title, column names, a list of cells for each row, and a note."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str


def as_json(hardware: Hardware, estimates: Sequence[Estimate]) -> dict[str, Any]:
    """days, gpu_hours, flops, memory_bytes and cost of each stage and in all. memory_bytes: of a device at its peak; in
    all, the largest."""
    stages = {one.work.entry: _stage(hardware, one) for one in estimates}
    total = {key: sum(stage[key] for stage in stages.values()) for key in ("days", "gpu_hours", "flops", "cost")} | {
        "memory_bytes": max(stage["memory_bytes"] for stage in stages.values())
    }
    return {"hardware": asdict(hardware), "stages": stages, "total": total}


def _stage(hardware: Hardware, one: Estimate) -> dict[str, Any]:
    work, fits = one.work, one.memory.fits(hardware.memory)
    found = None if fits else remedy(work, hardware)
    return {
        "days": one.seconds / DAY,
        "gpu_hours": one.gpu_hours,
        "flops": one.operations.total,
        "memory_bytes": one.memory.total,
        "cost": one.cost,
        "parameters": {network.name: network.parameters for network in work.networks},
        "trained_parameters": sum(network.trained_parameters for network in work.trained),
        "devices": work.devices,
        "strategy": work.strategy,
        "tokens": work.tokens,
        "steps": work.steps,
        "sampling_days": one.sampling / DAY,
        "flops_by_part": {**one.operations._asdict(), "recomputation": one.recomputation},
        "memory_by_part": one.memory._asdict(),
        "fits": fits,
        "fits_with": found and found.settings,
        "bytes_sent_per_step": {name: bytes_sent(work._replace(strategy=name)) for name in ("ddp", "fsdp")},
        "batch": list(work.algebra),
    }


def lines(hardware: Hardware, estimates: Sequence[Estimate]) -> list[str]:
    """What the tables do not say: how batches are made up, what FLOPs are for, communication, what does not fit."""
    return [f"{one.work.entry}: {line}" for one in estimates for line in _lines_of(one, hardware)]


def _lines_of(one: Estimate, hardware: Hardware) -> Iterator[str]:
    trained = sum(network.trained_parameters for network in one.work.trained)
    networks = ", ".join(network.name for network in one.work.networks)
    yield f"{networks}; {short(trained)} parameters are trained"
    yield from one.work.algebra
    yield _operations(one)
    if one.work.devices > 1:
        yield _communication(one, hardware)
    if not one.memory.fits(hardware.memory):
        needed = f"{one.memory.total / GB:,.1f} GB do not fit in {hardware.memory / GB:,.1f} GB"
        yield f"{needed}. {_remedy(one.work, hardware)}"


def _remedy(work: Work, hardware: Hardware) -> str:
    if (found := remedy(work, hardware)) is None:
        why = ", since each holds all weights while it samples" if work.rollouts else ""
        return f"Neither lora=default nor trainer=fsdp with more devices of this kind is enough{why}"
    settings, made = found
    cost = f" and {made.cost:,.2f} $" if made.cost else ""
    return f"It fits with {settings}, in {duration(made.seconds)}{cost}"


def _operations(one: Estimate) -> str:
    """Shares of the model's FLOPs, and what is computed on top of them."""
    done = one.operations
    parts = {"attention": done.attention, "sampling": done.sampling, "scoring samples": done.assessing}
    shares = ", ".join(f"{name} {count / done.total:.1%}" for name, count in parts.items() if count)
    again = f"; layers are recomputed, {one.recomputation / done.total:.0%} on top" if one.recomputation else ""
    return f"of the FLOPs, {shares}{again}"


def _communication(one: Estimate, hardware: Hardware) -> str:
    each = {name: bytes_sent(one.work._replace(strategy=name)) for name in ("ddp", "fsdp")}
    link = hardware.link(one.work.devices)
    sent = ", ".join(f"{name} {count / GB:,.1f} GB in {count / link:,.2f} s" for name, count in each.items())
    step = (one.seconds - one.sampling) / one.work.steps
    return f"communication of a step on each device: {sent}; a step takes {step:,.2f} s (strategy {one.work.strategy})"


def compute_table(hardware: Hardware, estimates: Sequence[Estimate]) -> Sheet:
    """FLOPs, time and cost by stage; a last row with all of them if there are several."""
    rows = []
    hours = sum(one.gpu_hours for one in estimates)
    for one in estimates:
        networks = sum(network.parameters for network in one.work.networks if network.own_trunk)
        figures = one.operations.total, one.seconds, one.gpu_hours, one.cost
        rows.append([one.work.entry, short(networks), short(one.work.tokens), *_costs(hours, *figures)])
    if len(estimates) > 1:
        total = as_json(hardware, estimates)["total"]
        figures = total["flops"], DAY * total["days"], hours, total["cost"]
        rows.append(["all", "", short(sum(one.work.tokens for one in estimates)), *_costs(hours, *figures)])
    columns = ["", "parameters", "tokens", "FLOPs", "time", "GPU-hours", "share", "cost, $"]
    devices = " or ".join(f"{count:,}" for count in sorted({one.work.devices for one in estimates}))
    low, high = (f"{extreme(one.mfu for one in estimates):.0%}" for extreme in (min, max))
    shares = low if low == high else f"{low} to {high}"
    rate = f"{shares} of {hardware.peak(estimates[-1].work.mixed) / 1e12:,.4g} TFLOP/s"
    note = f"{devices} × {hardware.name} at {rate} (mfu), {hardware.price:,.2f} $ per device and hour"
    return Sheet("stage", columns, rows, note)


def _costs(hours: float, flops: float, seconds: float, own: float, cost: float) -> list[str]:
    shown = f"{own:,.0f}" if own >= 100 else f"{own:.2g}"
    return [
        f"{flops:.2e}",
        duration(seconds),
        shown,
        f"{own / hours:.2%}",
        f"{cost:,.0f}" if cost >= 100 else f"{cost:.2f}",
    ]


def memory_table(hardware: Hardware, estimates: Sequence[Estimate]) -> Sheet:
    """GB on each device by part, and at its peak."""
    rows = []
    for one in estimates:
        cells = [gigabytes(sum(getattr(one.memory, part) for part in parts)) for parts in PARTS.values()]
        fits = "yes" if one.memory.fits(hardware.memory) else "no"
        rows.append([one.work.entry, *cells, gigabytes(one.memory.total), fits])
    note = "gathered: what FSDP2 unshards, and the copy of the weights that samples; "
    note += f"fits: in {USABLE:.0%} of {hardware.memory / GB:,.4g}"
    return Sheet("GB per device", ["", *PARTS, "peak", "fits"], rows, note)


def gigabytes(count: float) -> str:
    """Bytes as gigabytes of 10^9, without the unit."""
    return f"{count / GB:,.2f}" if count < 10 * GB else f"{count / GB:,.1f}"


def size_of(count: float) -> str:
    """12.3 GB, 0.04 MB."""
    return f"{gigabytes(count)} GB" if count >= GB else f"{count / 1e6:,.2f} MB"


def short(number: float) -> str:
    """1.4T, 65.3B, 719k."""
    for unit, letter in UNITS:
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """20.8 days, 3.2 hours, 12 minutes, 40 s."""
    for unit, name in ((DAY, "days"), (HOUR, "hours"), (60.0, "minutes")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"


def budget_lines(flops: float, like: GPTConfig, name: str) -> list[str]:
    """The compute-optimal model for a budget, and the command that plans one of that size, in the shape of a model."""
    parameters, tokens = CHINCHILLA.optimal(flops)
    shape = shape_for(parameters, like)
    reads = flops / flops_per_token(shape, shape.longest).training
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    changes = " ".join(f"model.{size}={getattr(shape, size)}" for size in sizes)
    each, loss = tokens / parameters, CHINCHILLA.loss(parameters, tokens)
    return [
        f"{flops:.3g} FLOPs: {short(parameters)} parameters on {short(tokens)} tokens, {each:.0f} for each of them; "
        f"a loss of {loss:.2f} nats per token on Chinchilla's text",
        f"A model of {short(shape.num_parameters())} reads {short(reads)}, since its attention costs FLOPs too:",
        f"gradus plan stage=pretrain model={name} {changes} tokens={reads:.3g}",
    ]
