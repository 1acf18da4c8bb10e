"""Ending a run whose validations no longer improve."""

import math
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer

from components.system.limits import Count, NonNegative


class EarlyStopping(Callback):
    """Ends training after `patience` validations in a row without a new best `metric`; patience None: never.

    A value is a new best if it is below (mode "max": above) the previous best by more than `min_delta`; an infinite or
    NaN value never is. `reason` is a message if it ended the run, else "". The state is saved in checkpoints: a resumed
    run stops where an uninterrupted one does, and a run that was ended does not resume training unless `patience` is
    now larger. A run resumed with another metric or mode ignores all earlier values.
    """

    def __init__(
        self,
        patience: Count | None = None,
        min_delta: NonNegative = 0.0,
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
        """Raises ValueError if the validation does not measure `metric`."""
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
        self._update(float(metrics[self.metric]))
        if self.reason:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        state = {"best": self._best, "waited": self._waited, "step": self._step, "reason": self.reason}
        return state | {"metric": self.metric, "mode": self.mode}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        compared = state_dict.get("metric", self.metric), state_dict.get("mode", self.mode)  # not in older files
        if compared != (self.metric, self.mode):
            return
        self._best, self._waited, self._step = (state_dict[name] for name in ("best", "waited", "step"))
        if self.patience is not None and self._waited >= self.patience:
            self.reason = state_dict["reason"]

    def _update(self, value: float) -> None:
        gain = math.inf if self._best is None else self._best[1] - value
        gain = -gain if self.mode == "max" and self._best is not None else gain
        if gain > self.min_delta and math.isfinite(value):
            self._best, self._waited = (self._step, value), 0
            return
        self._waited += 1
        if self.patience is not None and self._waited >= self.patience:
            best = f"{self._best[1]:.4g} after step {self._best[0]}" if self._best else "not finite"
            self.reason = f"{self.metric} has not improved for {self._waited} validations; the best was {best}"
