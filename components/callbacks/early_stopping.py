"""Ending a run whose validations no longer improve."""

import math
from typing import Annotated, Any, Literal

from lightning import Callback, LightningModule, Trainer
from pydantic import Field


class EarlyStopping(Callback):
    """Ends training after `patience` validations in a row without a new best `metric`; patience None: never.

    A value is a new best if it is below (mode "max": above) the best before it by more than `min_delta`; one that is
    infinite or not a number never is. `reason` says that it ended the run, and is "" otherwise. What it has seen is
    part of a checkpoint: a resumed run stops where an unbroken one does, and one that it had ended does not train on,
    unless it may now wait longer. A run resumed with another metric or mode compares none of the earlier values.
    """

    def __init__(
        self,
        patience: Annotated[int, Field(ge=1)] | None = None,
        min_delta: Annotated[float, Field(ge=0)] = 0.0,
        metric: str = "val/loss",
        mode: Literal["min", "max"] = "min",
    ) -> None:
        """Raises ValueError for a patience below 1."""
        if patience is not None and patience < 1:
            raise ValueError(f"EarlyStopping: expected a patience of at least 1, or None, got {patience}")
        self.patience, self.min_delta, self.metric, self.mode = patience, min_delta, metric, mode
        self.reason = ""
        self._best: tuple[int, float] | None = None  # step and value
        self._waited = 0  # validations since
        self._step = -1  # of the latest validation

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.reason:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises ValueError where the validation does not measure `metric`."""
        metrics = trainer.callback_metrics
        measured = sorted(name for name in metrics if name.startswith("val/"))
        if self.patience is None or not measured:
            return
        if self.metric not in metrics:
            raise ValueError(
                f"callbacks.early_stopping.metric={self.metric} is not measured by this stage's validation, which has "
                f"{', '.join(measured)}"
            )
        if trainer.sanity_checking or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._judge(float(metrics[self.metric]))
        if self.reason:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        seen = {"best": self._best, "waited": self._waited, "step": self._step, "reason": self.reason}
        return seen | {"metric": self.metric, "mode": self.mode}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        compared = state_dict.get("metric", self.metric), state_dict.get("mode", self.mode)  # older files have neither
        if compared != (self.metric, self.mode):
            return
        self._best, self._waited, self._step = (state_dict[name] for name in ("best", "waited", "step"))
        if self.patience is not None and self._waited >= self.patience:
            self.reason = state_dict["reason"]

    def _judge(self, value: float) -> None:
        gain = math.inf if self._best is None else self._best[1] - value
        gain = -gain if self.mode == "max" and self._best is not None else gain
        if gain > self.min_delta and math.isfinite(value):
            self._best, self._waited = (self._step, value), 0
            return
        self._waited += 1
        if self.patience is not None and self._waited >= self.patience:
            best = f"{self._best[1]:.4g} after step {self._best[0]}" if self._best else "not finite"
            self.reason = f"{self.metric} has not improved for {self._waited} validations; the best was {best}"
