"""The settings of a run beside its result, so that TensorBoard can compare the runs of a sweep."""

import warnings
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger


class HyperParameters(Callback):
    """Writes `params` and the final value of `metric` for TensorBoard's HPARAMS tab when training has ended.

    params: flat, such as {"model.hidden_size": 64, "stage.optimizer.lr": 1e-3}. metric: a logged name, such
    as "val/loss". Where that was never logged, a warning names what was, and nothing is written.
    """

    def __init__(self, metric: str, params: dict[str, Any] | None = None) -> None:
        self.metric = metric
        self.params = params or {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not loggers or not self.params:
            return
        value = trainer.callback_metrics.get(self.metric)
        if value is None:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            warnings.warn(
                f"no hyper-parameters written: no metric {self.metric!r} was logged, but {logged}", stacklevel=2
            )
            return
        for logger in loggers:
            logger.log_hyperparams(self.params, {self.metric: float(value)}, step=trainer.global_step)
