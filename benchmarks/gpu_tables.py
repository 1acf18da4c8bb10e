"""README.md's tables of what gpu.py measured, and of what a data sheet promises."""

import re
import sys
from pathlib import Path
from typing import Any

import gpu_jobs
import harness
import random_models

README = Path(__file__).resolve().parent / "README.md"
BREAKDOWN = ("products", "attention", "elementwise", "optimizer", "copies", "idle")


def write(name: str, text: str) -> None:
    """Replaces what is between README.md's markers of this name."""
    begin, end = f"<!-- {name} by gpu.py -->", f"<!-- end of {name} -->"
    before = README.read_text()
    after = re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{text}\n{end}", before, flags=re.DOTALL)
    README.write_text(after)


def measured(record: dict[str, Any]) -> str:
    """All tables of a results file, and what was left out."""
    results, lines = record["results"], [_machine(record)]
    for part, title, unit, more in (
        ("pretrain", "pretraining, 1,024 tokens a row", "tokens/s", ("MFU", "ms a step")),
        ("generation", "generation, 64 tokens of prompt, 128 new", "tokens/s", ()),
        ("stages", "8 × (512 + 512) tokens", "rate", ()),
    ):
        if found := _by_rows(results.get(part, {})):
            lines.append(harness.table(title, found, unit, *more))
    if "breakdown" in results:
        lines.append(_breakdown(results["breakdown"]))
    for name, runs in results.get("tests", {}).items():
        counts = ", ".join(f"{runs[-1][key]} {key}" for key in ("passed", "failed", "error", "skipped"))
        lines.append(f"`{name}`: {counts}." + "".join(f"\n- {test}" for test in runs[-1]["names"]))
    if record["left_out"]:
        reasons = (f"- {name}: {why.splitlines()[-1]}" for name, why in record["left_out"].items())
        lines.append("Not measured:\n\n" + "\n".join(reasons))
    return "\n\n".join(lines)


def _machine(record: dict[str, Any]) -> str:
    machine = record["machine"]
    device = machine.get("gpu") or machine["processor"]
    rehearsal = " **A rehearsal with tiny shapes: these figures mean nothing.**" if record["rehearsal"] else ""
    return f"{device}, commit {machine['commit']}, python {machine['python']}, torch {machine['torch']}.{rehearsal}"


def _by_rows(found: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """By contestant, ours first of each work; one measured at several numbers of rows is a contestant at each."""
    flat: dict[str, list[dict[str, Any]]] = {}
    for name, runs in found.items():
        work, who = name.split(": ")
        nested = [key for key, value in runs[0].items() if isinstance(value, dict)]
        for rows in nested:
            flat[f"{work}, {rows}: {who}"] = [run[rows] for run in runs]
        if not nested:
            flat[name] = runs
    works = list(dict.fromkeys(name.split(": ")[0] for name in flat))
    return dict(sorted(flat.items(), key=lambda item: (works.index(item[0].split(": ")[0]), "gradus" not in item[0])))


def _breakdown(found: dict[str, list[dict[str, float]]]) -> str:
    rest = {"step_ms": "ms a step", "kernels": "kernels", "host_syncs": "host syncs", "host_sync_ms": "waiting, ms"}
    lines = [f"| share of the time | {' | '.join([*BREAKDOWN, *rest.values()])} |", "|---" * 11 + "|"]
    for name, runs in found.items():
        cells = [f"{runs[-1][kind]:.0%}" for kind in BREAKDOWN]
        cells += [harness.figure(runs[-1][key]) if key in runs[-1] else "" for key in rest]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def predicted() -> str:
    """The roofline of pretraining by part, for both sizes on every device of components/planning/roofline.py."""
    sys.path.insert(0, str(harness.ROOT))
    from components.models.config import GPTConfig
    from components.planning.roofline import DEVICES, parts_of_step, predicted_mfu, seconds_of

    blocks = []
    for size, rows in (("124M", 32), ("350M", 16)):
        layers, width, inner, heads = gpu_jobs.PRETRAINED[size]
        shape = random_models.shape(50304, layers, width, inner, heads, heads, max_position_embeddings=1024)
        parts = parts_of_step(GPTConfig(**shape), rows=rows, context=1024)
        columns = [f"{size}, {rows} rows of 1,024 tokens", "TFLOP", "GB", *(f"{device.name}, ms" for device in DEVICES)]
        lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for part in parts:
            times = (f"{part.seconds(device) * 1000:.1f}" for device in DEVICES)
            lines.append(f"| {part.name} | {part.flops / 1e12:.2f} | {part.bytes / 1e9:.1f} | {' | '.join(times)} |")
        whole = [f"{sum(part.flops for part in parts) / 1e12:.2f}", f"{sum(part.bytes for part in parts) / 1e9:.1f}"]
        times = [f"{seconds_of(parts, device) * 1000:.1f}" for device in DEVICES]
        lines.append(f"| a step | {' | '.join([*whole, *times])} |")
        lines.append(f"| MFU | | | {' | '.join(f'{predicted_mfu(parts, device):.0%}' for device in DEVICES)} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
