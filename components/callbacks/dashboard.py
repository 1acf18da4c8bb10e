"""A page of charts per stage, in reading order, with the ranges of a healthy run."""

from typing import Any

from lightning import Callback, Trainer

from components.loggers.recorder import recorders


class Dashboard(Callback):
    """Passes `pl_module.charts`, a sequence of (title, tags, low, high), to the loggers (TensorBoard: Custom Scalars).

    A chart with a healthy range (low and high, of its only tag) shows it as a band around the curve; the others show
    the curves of all their tags. A module without charts is ignored.
    """

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        for recorder in recorders(trainer) if pl_module.charts and stage == "fit" else ():
            recorder.record_charts(pl_module.charts)
