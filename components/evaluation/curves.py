"""Learning curves, read back from the event files that TensorBoard shows."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

WANTED = ("train/loss", "val/loss", "rollout/score", "rollout/gold", "rollout/kl", "rollout/entropy")


class Curve(NamedTuple):
    """A metric over training: steps[i] is the optimizer step at which values[i] was logged."""

    steps: list[int]
    values: list[float]


def read_curves(folders: Mapping[str, str | Path]) -> dict[str, dict[str, Curve]]:
    """{stage: {tag: Curve}} of the WANTED tags in each stage's folder; a stage without event files is left out.

    Points of a run that was resumed from an earlier step replace those it had logged beyond that step.
    """
    found = {}
    for stage, folder in folders.items():
        curves = _read(Path(folder))
        if curves:
            found[stage] = curves
    return found


def _read(folder: Path) -> dict[str, Curve]:
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()  # 0: all of them
    curves = {}
    for tag in set(WANTED).intersection(events.Tags()[SCALARS]):
        latest = {event.step: event.value for event in events.Scalars(tag)}
        steps = sorted(latest)
        curves[tag] = Curve(steps, [latest[step] for step in steps])
    return curves
