"""A TensorBoard page per stage: a few charts in reading order, with the ranges that a healthy run stays in."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from components.callbacks.tap import attach


class Dashboard(Callback):
    """Lays out the Custom Scalars tab by `pl_module.charts`, a sequence of (title, tags, low, high).

    A chart with a healthy range (low and high, of its one tag) shows it as a band around the curve: the bounds are
    logged as `healthy/<tag>/low` and `/high` wherever the metric is, since TensorBoard draws a band only where all
    three have a point. The others show all their tags in one chart. A module without charts is left alone.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        charts = getattr(pl_module, "charts", ())
        self._ranges = {chart.tags[0]: (chart.low, chart.high) for chart in charts if chart.low is not None}
        self._boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if charts and self._boards and trainer.is_global_zero:
            for board in self._boards:
                board.experiment.add_custom_scalars(layout(type(pl_module).__name__, charts))
            attach(trainer, self._receive)

    def _receive(self, metrics: Mapping[str, float], step: int) -> None:
        bounds = {}
        for tag in metrics.keys() & self._ranges.keys():
            bounds[bound(tag, "low")], bounds[bound(tag, "high")] = self._ranges[tag]
        for board in self._boards if bounds else ():
            board.log_metrics(bounds, step)


def layout(stage: str, charts: Sequence[Any]) -> dict[str, dict[str, list]]:
    """What `SummaryWriter.add_custom_scalars` takes: a section of curves, then one of curves within their bands.

    TensorBoard (2.21) shows a section's plain charts first, and then those with bands from the last to the first.
    """
    curves = {c.title: ["Multiline", [f"{re.escape(tag)}$" for tag in c.tags]] for c in charts if c.low is None}
    bands = {
        c.title: ["Margin", [c.tags[0], bound(c.tags[0], "low"), bound(c.tags[0], "high")]]
        for c in reversed(charts)
        if c.low is not None
    }
    sections = {stage: curves, f"{stage}, healthy within the band": bands}
    return {title: section for title, section in sections.items() if section}


def bound(tag: str, side: str) -> str:
    """healthy/rollout_kl/low"""
    return f"healthy/{tag.replace('/', '_')}/{side}"
