"""Seeing what a run logs, as it is logged."""

from collections.abc import Callable
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import Logger


class Tap(Logger):
    """A logger that only hands on: `receive(metrics, step)` for whatever the trainer or a stage logs, on every rank.

    So a callback sees the same numbers at the same steps as TensorBoard, without asking who logs them or how often.
    """

    def __init__(self, receive: Callable[[dict[str, float], int], None]) -> None:
        super().__init__()
        self.receive = receive

    @property
    def name(self) -> str:
        return "tap"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: settings are no metrics."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.receive(metrics, step or 0)


def attach(trainer: Trainer, receive: Callable[[dict[str, float], int], None]) -> None:
    """Adds a Tap behind the trainer's loggers, in place of an earlier one of the same receiver."""
    others = [one for one in trainer.loggers if not (isinstance(one, Tap) and one.receive == receive)]
    trainer.loggers = [*others, Tap(receive)]
