"""Learning curves, read from what a run logged: TensorBoard's event files, else metrics.csv."""

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from components.loggers.recorder import METRICS, original

WANTED = ("train/loss", "val/loss", "rollout/score", "rollout/gold", "rollout/kl", "rollout/entropy")


class Curve(NamedTuple):
    """A metric over training: steps[i] is the optimizer step at which values[i] was logged."""

    steps: list[int]
    values: list[float]


def read_curves(folders: Mapping[str, str | Path]) -> dict[str, dict[str, Curve]]:
    """{stage: {tag: Curve}} for the WANTED tags in each stage's folder; a stage that logged to no file is left out.

    If a run was resumed from an earlier step, its new points replace those logged beyond that step.
    """
    curves_of = {}
    for stage, folder in folders.items():
        curves = _curves(_logged(Path(folder)))
        if curves:
            curves_of[stage] = curves
    return curves_of


def _curves(points: Iterable[tuple[str, int, float]]) -> dict[str, Curve]:
    """points: tag, step and value, in the order they were logged."""
    latest: dict[str, dict[int, float]] = {}
    for tag, step, value in points:
        if (name := original(tag)) in WANTED:
            latest.setdefault(name, {})[step] = value
    return {name: Curve(sorted(values), [values[step] for step in sorted(values)]) for name, values in latest.items()}


def _logged(folder: Path) -> Iterator[tuple[str, int, float]]:
    if any(folder.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()  # 0: all points
        yield from ((tag, event.step, event.value) for tag in events.Tags()[SCALARS] for event in events.Scalars(tag))
    elif (folder / METRICS).exists():
        with (folder / METRICS).open(newline="", encoding="utf-8") as stream:
            yield from ((row["name"], int(row["step"]), float(row["value"])) for row in csv.DictReader(stream))
