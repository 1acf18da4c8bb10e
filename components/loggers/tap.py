"""A logger that passes what a run logs to a callback."""

from collections.abc import Callable
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import Logger


class Tap(Logger):
    """A logger that only calls `receive(metrics, step)` with all that the trainer or a stage logs, on every rank.

    So a callback gets the same numbers at the same steps as TensorBoard, regardless of what logs them and how often.
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
        """Does nothing: settings are not metrics."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.receive(metrics, step or 0)


def attach(trainer: Trainer, receive: Callable[[dict[str, float], int], None]) -> None:
    """Appends a Tap to the trainer's loggers, replacing an earlier one with the same receiver."""
    others = [logger for logger in trainer.loggers if not (isinstance(logger, Tap) and logger.receive == receive)]
    trainer.loggers = [*others, Tap(receive)]
