"""The one seam between a run and the loggers that keep it: what a logger holds besides numbers, and under which names.

Callbacks hand texts, tables, histograms and settings to `recorders(trainer)` and do not know which loggers those are.
A new logger is a class that mixes Recorder into one of Lightning's, and a file in conf/logger.
"""

import importlib.util
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.system import installing

BOOKKEEPING = ("epoch", "budget")  # what means the same in every stage
# in a stage's folder
METRICS = "csv/metrics.csv"
WANDB_ID, MLFLOW_ID = "wandb/run_id", "mlflow_run_id"
LOGGED = ("events.out.tfevents.*", "csv/*", WANDB_ID, MLFLOW_ID)
BINS = 30  # of histograms, for loggers that have none of their own


class Recorder:
    """Mixed into a Lightning Logger. Every method takes a name as stages log it, such as "val/loss"; `named` says what
    it is called in the logger. A logger keeps what it can hold; the default is to leave it out.

    stage: the stage's class, as its `_target_`. Calls come from the first process alone.
    """

    stage: str

    def __init__(self, *, stage: str | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stage = (stage or "run").rpartition(".")[2]

    def named(self, name: str) -> str:
        return named(name, self.stage)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({self.named(name): value for name, value in metrics.items()}, step)  # type: ignore[misc]

    def seen_at(self) -> str:
        """The command that shows the run, or where its figures lie; "" where there is nothing to see."""
        return ""

    def record_settings(self, settings: Mapping[str, int | float | str]) -> None:
        """What the run was set to, flat."""

    def record_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Rows with the same keys, such as prompt, response and score."""

    def record_text(self, name: str, text: str, step: int) -> None:
        """Markdown."""

    def record_histogram(self, name: str, values: Tensor, step: int) -> None:
        """The distribution of values (N,), finite and on the CPU."""

    def record_charts(self, charts: Sequence[Any]) -> None:
        """The stage's charts in reading order: (title, tags, low, high), with the healthy range of those that have
        one."""


def recorders(trainer: Any) -> list[Recorder]:
    """The trainer's loggers that are Recorders; none on other processes than the first."""
    return [logger for logger in trainer.loggers if isinstance(logger, Recorder)] if trainer.is_global_zero else []


def forget(folder: Path) -> None:
    """Removes what any logger left in a stage's folder, for a run that starts from its first step: its curves are its
    own, and runs kept elsewhere are not continued."""
    for pattern in LOGGED:
        for file in folder.glob(pattern):
            file.unlink()


def named(name: str, stage: str) -> str:
    """What a metric of a stage is called in a logger.

    val/loss → "SFT val/loss", so that no chart shows two stages whose metrics of one name mean different things;
    artifact/val/loss → "Artifact/SFT val/loss", of what the stage has made; epoch and budget/flops, the same in every
    stage, and healthy/val/loss/low → "_/epoch", "_/budget/flops", "_/healthy/SFT val/loss/low". TensorBoard orders its
    groups by character, where capitals come before `_`.
    """
    group, _, rest = name.partition("/")
    if group == "artifact":
        return f"Artifact/{stage} {rest}"
    if group == "healthy":
        return f"_/healthy/{stage} {rest}"
    return f"_/{name}" if group in BOOKKEEPING else f"{stage} {name}"


def original(tag: str) -> str:
    """The name under which a stage logged what a logger calls `tag`; names of another form are returned as they are."""
    stage, space, name = tag.partition(" ")
    return name if space and "/" not in stage else tag


def require(package: str) -> None:
    """Raises ValueError naming the command that installs a logger's package, which is also the name of its extra, where
    it is missing."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(installing.missing(f"logger={package}", package, package))


def kept_id(file: Path) -> str:
    """The id of a run in a logger that keeps runs elsewhere, so that a resumed run continues it; a new one, written to
    `file`, where there is none."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid.uuid4().hex, encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()


def histogram(values: Tensor) -> tuple[list[float], list[float]]:
    """Counts (BINS) and edges (BINS + 1) of values (N,); equal values lie in the middle of a range of width 1."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts, edges = torch.histogram(values.double(), BINS, range=(low, high))
    return counts.tolist(), edges.tolist()
