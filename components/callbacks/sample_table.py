"""Samples of the model's text, and the distributions behind the means, for the loggers."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from components.loggers.recorder import recorders


class SampleTable(Callback):
    """Every `every_n_steps` optimizer steps and at the end of the fit, logs texts and distributions from the module.

    `sample_texts()` (training.contract.Reporting): its rows are logged as a table, "samples". It runs without gradients
    and in eval mode. `histograms()`: each is logged as a histogram under its name, without non-finite entries. Both are
    called on every rank, since sampling from a sharded model needs all of them. A signal leaves no time to sample: what
    is due at its step is logged at once if the module has it at hand (`samples_at_hand`), else by the resumed run.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        if every_n_steps < 1:
            raise ValueError(f"SampleTable: expected every_n_steps of at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._step: int | None = None
        self._left = False  # whether what was due at the latest step is left to the resumed run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        if self._left:
            self._write(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: object) -> None:
        # global_step does not change while gradients are accumulated
        due = trainer.global_step != self._step and trainer.global_step % self.every_n_steps == 0
        if due and (pl_module.samples_at_hand or not trainer.should_stop):
            self._write(trainer, pl_module)
        elif due:
            self._left = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not in on_train_end, which a run resumed from its last step never reaches."""
        if trainer.global_step != self._step:
            self._write(trainer, pl_module)

    def state_dict(self) -> dict[str, bool]:
        return {"left": self._left}

    def load_state_dict(self, state_dict: dict[str, bool]) -> None:
        self._left = state_dict["left"]

    def _write(self, trainer: Trainer, pl_module: Any) -> None:
        self._step = step = trainer.global_step
        self._left = False
        rows = _in_eval_mode(pl_module, pl_module.sample_texts)
        histograms = pl_module.histograms()
        for recorder in recorders(trainer):
            if rows:
                recorder.record_table("samples", rows, step)
            for name, values in histograms.items():
                finite = values.detach().float().cpu()
                finite = finite[finite.isfinite()]
                if finite.numel():
                    recorder.record_histogram(name, finite, step)


@torch.no_grad()
def _in_eval_mode(module: LightningModule, function: Any) -> Any:
    """Calls `function` with every submodule in eval mode, then restores each one's own mode."""
    modes = {submodule: submodule.training for submodule in module.modules()}
    module.eval()
    try:
        return function()
    finally:
        for submodule, training in modes.items():
            submodule.training = training
