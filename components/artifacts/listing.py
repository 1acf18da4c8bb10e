"""The contents of a folder of runs: each stage's artifact, its headline metric, size and age."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from components.system.disk import read_json

HEADLINES = {  # ahead of the usual ones
    **dict.fromkeys(("rm", "dpo", "simpo", "orpo"), "val/accuracy"),
    "kto": "val/margin",
    "distill": "val/reverse_kl",
}
USUAL = ("val/gold", "val/score", "val/loss", "train/loss", "bytes_per_token")
DEPTH = 3  # <run>/<stage>/<job of a sweep>


class Entry(NamedTuple):
    """A stage of a run: name and value of its headline metric ("" if it has none), size of the folder in bytes, time of
    the last change in seconds since 1970."""

    run: str
    stage: str
    metric: str
    size: int
    changed: float


def entries(logs: Path) -> list[Entry]:
    """All stages, by run and age, unfinished ones included. Raises ValueError if there are none."""
    stages = sorted(_entries(logs), key=lambda entry: (entry.run, entry.changed, entry.stage))
    if not stages:
        raise ValueError(f"{logs} contains no runs. Start one with: python train.py stage=all model=tiny")
    return stages


def _entries(logs: Path) -> Iterator[Entry]:
    for depth in range(2, DEPTH + 1):
        for folder in logs.glob("/".join(["*"] * depth)):
            made = (folder / "export").is_dir() or (folder / "report.json").is_file()
            if made or (folder / "checkpoints").is_dir():
                run, *stage = folder.relative_to(logs).parts
                files = [file.stat() for file in folder.rglob("*") if file.is_file()]
                size, changed = sum(file.st_size for file in files), max((file.st_mtime for file in files), default=0.0)
                yield Entry(run, "/".join(stage), _headline_in(folder) if made else "not finished", size, changed)


def headline(card: Mapping[str, Any]) -> str:
    """Name and value of the metric that a stage is judged by; "" if its card has none."""
    metrics = card["metrics"]
    names = (HEADLINES.get(card["stage"]), *USUAL)
    return next((f"{name} {metrics[name]:.4g}" for name in names if metrics.get(name) is not None), "")


def _headline_in(folder: Path) -> str:
    try:
        return headline(read_json(folder / "export/card.json"))
    except (ValueError, LookupError, TypeError, AttributeError):  # no card, or a foreign one
        return ""


def readable_size(size: int) -> str:
    """1,536 → "1.5 kB", by powers of 1,000."""
    value, units = float(size), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 999.5 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.3g} {unit}"


def readable_age(changed: float, now: float | None = None) -> str:
    """Such as "3 h": in the largest unit that gives at least 1."""
    seconds = max(0.0, (time.time() if now is None else now) - changed)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"
