"""The interface between a run and its loggers: what they record besides scalars, and under which names.

Callbacks pass texts, tables, histograms and settings to `recorders(trainer)`, regardless of which loggers those are.
A new logger is a class that mixes Recorder into one of Lightning's loggers, and a file in conf/logger.
"""

import importlib.util
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.system import installing

BOOKKEEPING = ("epoch", "budget")  # the same in every stage
# files in a stage's folder
METRICS = "csv/metrics.csv"
WANDB_ID, MLFLOW_ID = "wandb/run_id", "mlflow_run_id"
LOGGED = ("events.out.tfevents.*", "csv/*", WANDB_ID, MLFLOW_ID)
BINS = 30  # of histograms, for loggers without histograms of their own


class Recorder:
    """A mixin for a Lightning Logger. Names are those that stages log, such as "val/loss"; `named` returns the name in
    the logger. By default, a record that a logger does not support is dropped.

    stage: the `_target_` of the stage's class. Only the first process calls these methods.
    """

    stage: str

    def __init__(self, *, stage: str | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stage = (stage or "run").rpartition(".")[2]

    def named(self, name: str) -> str:
        return named(name, self.stage)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({self.named(name): value for name, value in metrics.items()}, step)  # type: ignore[misc]

    def location(self) -> str:
        """The command that shows the run, or the location of its metrics; "" if there is nothing to show."""
        return ""

    def record_settings(self, settings: Mapping[str, int | float | str]) -> None:
        """The settings of the run, flat."""

    def record_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Rows with the same keys, such as prompt, response and score."""

    def record_text(self, name: str, text: str, step: int) -> None:
        """A text in Markdown."""

    def record_histogram(self, name: str, values: Tensor, step: int) -> None:
        """The distribution of values (N,), finite and on the CPU."""

    def record_charts(self, charts: Sequence[Any]) -> None:
        """The stage's charts in reading order: (title, tags, low, high), with low and high None without a healthy
        range."""


def recorders(trainer: Any) -> list[Recorder]:
    """The trainer's loggers that are Recorders; none except on the first process."""
    return [logger for logger in trainer.loggers if isinstance(logger, Recorder)] if trainer.is_global_zero else []


def forget(folder: Path) -> None:
    """Deletes all loggers' files in a stage's folder, for a run that starts from scratch: old curves are removed, and
    runs stored elsewhere are not continued."""
    for pattern in LOGGED:
        for file in folder.glob(pattern):
            file.unlink()


def named(name: str, stage: str) -> str:
    """The name of a stage's metric in a logger.

    val/loss → "SFT val/loss", so no chart mixes metrics of two stages with the same name and different meanings;
    artifact/val/loss → "Artifact/SFT val/loss", for the artifact that the stage made; epoch and budget/flops, the same
    in every stage, and healthy/val/loss/low → "_/epoch", "_/budget/flops", "_/healthy/SFT val/loss/low". TensorBoard
    sorts its groups by character code, where capitals come before `_`.
    """
    group, _, rest = name.partition("/")
    if group == "artifact":
        return f"Artifact/{stage} {rest}"
    if group == "healthy":
        return f"_/healthy/{stage} {rest}"
    return f"_/{name}" if group in BOOKKEEPING else f"{stage} {name}"


def original(tag: str) -> str:
    """The name under which a stage logged a logger's `tag`; names of another form are returned unchanged."""
    stage, space, name = tag.partition(" ")
    return name if space and "/" not in stage else tag


def require(package: str) -> None:
    """Raises ValueError if a logger's package is missing, with the command that installs it. The package's name is also
    that of its extra."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(installing.missing(f"logger={package}", package, package))


def kept_id(file: Path) -> str:
    """The id of a run in a logger that stores runs elsewhere, read from `file`, so a resumed run continues it; if there
    is none, a new one, which is written to `file`."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid.uuid4().hex, encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()


def histogram(values: Tensor) -> tuple[list[float], list[float]]:
    """Counts (BINS) and edges (BINS + 1) of values (N,); equal values are in the middle of a range of width 1."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts, edges = torch.histogram(values.double(), BINS, range=(low, high))
    return counts.tolist(), edges.tolist()
