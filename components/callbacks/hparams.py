"""The settings of a run along with its result, so loggers can compare the runs of a sweep."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from components.loggers.recorder import recorders


class HyperParameters(Callback):
    """Passes `params` to the loggers before training, and logs `metric` of the finished run as artifact/<metric>.

    params: flat, such as {"model": "tiny", "stage.optimizer.lr": 1e-3}. metric: a logged name, such as "val/loss"; a
    run that does not measure it (no held-out data) logs nothing.
    """

    def __init__(self, metric: str, params: dict[str, Any] | None = None) -> None:
        self.metric = metric
        self.params = params or {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for recorder in recorders(trainer) if self.params and stage == "fit" else ():
            recorder.record_settings(self.params)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """In teardown, since with export=best the checkpoints callback replaces the metrics by the best ones before."""
        value = trainer.callback_metrics.get(self.metric)
        if value is None or stage != "fit":
            return
        for recorder in recorders(trainer):
            recorder.log_metrics({f"artifact/{self.metric}": float(value)}, trainer.global_step)
