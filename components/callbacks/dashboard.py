"""A page of charts per stage, in reading order, with the ranges that a healthy run stays in."""

from lightning import Callback, LightningModule, Trainer

from components.loggers.recorder import recorders


class Dashboard(Callback):
    """Hands `pl_module.charts`, a sequence of (title, tags, low, high), to the loggers: TensorBoard's Custom Scalars.

    A chart with a healthy range (low and high, of its one tag) shows it as a band around the curve; the others show all
    their tags in one chart. A module without charts is left alone.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        charts = getattr(pl_module, "charts", ())
        for recorder in recorders(trainer) if charts and stage == "fit" else ():
            recorder.record_charts(charts)
