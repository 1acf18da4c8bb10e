"""When checkpoints are written, how many are kept, and which weights are exported."""

import copy
import math
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from components.callbacks.save_clock import SaveClock
from components.callbacks.weight_average import holding
from components.models.shards import copy_whole_
from components.training.checkpoint_io import BEST, AtomicCheckpointIO, newest_first, step_in_name


class Validation(NamedTuple):
    """The metrics of a validation, by logged name, and the optimizer step after which it ran."""

    step: int
    metrics: dict[str, float]


class Checkpoints(Checkpoint):
    """Saves every `every_n_steps` optimizer steps, about every `every_minutes` (None: not by time), and always when
    training ends; keeps the newest `keep`.

    As a `Checkpoint`, it runs after all other callbacks: a guard raises before the save, and a request to stop takes
    effect in the same step. It saves inside the last step, not after it: by then the loops have counted an epoch that
    may not be over, and a run resumed with more steps would start from the wrong batch. State that must be in the file
    (a moving average, a counter) must be updated before the LightningModule's own `on_train_batch_end`, which runs
    later.

    A step that is validated is saved after its validation: a run resumed from it does not validate again, so the
    validation's result must be in the file. An interrupted run saves without it (`save_and_leave`,
    `save_unvalidated`), and the resumed run begins with that validation.

    export="best": the trained weights of the validation with the lowest (mode "max": highest) `metric` are kept in
    best.ckpt and restored into the module when training has ended, before the module's own `on_fit_end`. Their metrics
    then replace those of the last validation in `trainer.callback_metrics`. `exported` has the step and the reason.
    """

    def __init__(
        self,
        folder: str | Path,
        every_n_steps: int = 1000,
        keep: int = 2,
        every_minutes: float | None = None,
        export: Literal["best", "last"] = "last",
        metric: str = "val/loss",
        mode: Literal["min", "max"] = "min",
        inputs: dict[str, Any] | None = None,
    ) -> None:
        """inputs: the run's inputs, plain values by name, saved in each checkpoint for runs that resume from it.

        Raises ValueError for a count below 1, or for minutes that are not above 0.
        """
        if every_n_steps < 1 or keep < 1:
            raise ValueError(
                f"Checkpoints: expected every_n_steps and keep of at least 1, got {every_n_steps} and {keep}"
            )
        if every_minutes is not None and not every_minutes > 0:
            raise ValueError(f"Checkpoints: expected every_minutes above 0, got {every_minutes}")
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self._clock = SaveClock(every_minutes)
        self.keep = keep
        self.export, self.metric, self.mode = export, metric, mode
        self.inputs = inputs or {}
        self.last_path: Path | None = None  # newest file written or resumed from
        self.exported: dict[str, Any] = {}
        self._validation: Validation | None = None  # the latest
        self._best: Validation | None = None  # whose weights are in best.ckpt
        self._step: int | None = None  # None until training starts
        self._unvalidated = False  # whether this step's validation is left to the resumed run
        self._leaving = False
        self._before_validation: dict[str, Any] = {}  # progress of the validation loop

    def save_and_leave(self, validation_is_due: bool) -> None:
        """Saves in this step; a validation that is due is left to the resumed run."""
        self._leaving, self._unvalidated = True, validation_is_due

    def save_unvalidated(self, trainer: Trainer) -> None:
        """Saves in the middle of a validation, which is left to the resumed run."""
        if not self._unvalidated:  # else the file that this run resumed from already records it
            self._unvalidated = True
            self._save(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._clock.start(trainer.global_step)
        path = self._path(trainer.global_step)
        self.last_path = path if path.is_file() else None
        self._best = self._stored_best(trainer)
        if trainer.is_global_zero:
            self._set_aside(trainer.global_step)
        self._validate_if_left(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        step = trainer.global_step
        if step == self._step:
            return  # gradients are still being accumulated, and checkpoints do not contain them
        self._step = step
        if step == trainer.max_steps:
            trainer.should_stop = True  # as Stage does after this hook; it determines whether a validation follows
        validates = not self._leaving and validates_next(trainer)
        if validates:
            progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            self._before_validation = copy.deepcopy(progress.state_dict())
        elif self._is_due(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises ValueError if export="best" and the validation does not measure `metric`."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if self.export == "best" and metrics and self.metric not in metrics:
            raise ValueError(
                f"selection.metric={self.metric} is not measured by this stage's validation, which has "
                f"{', '.join(sorted(metrics))}. Choose one of these, or export=last"
            )
        step = trainer.global_step
        if trainer.sanity_checking or (self._validation is not None and self._validation.step == step):
            return  # these weights are already validated: before this run was resumed, or between micro-batches
        self._validation = Validation(step, metrics)
        if self.export == "best" and self._is_better(self._validation):
            self._best = self._validation
            self._save_best(trainer, pl_module)
        if self._unvalidated:
            return  # the file that this run resumed from is of this step
        if not between_steps(trainer) and self._is_due(trainer):
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.last_path != self._path(trainer.global_step):
            self._save(trainer)  # training ended with the last epoch, or because of a validation

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not in on_train_end, which a run resumed from its last step never reaches."""
        if self._step is None:
            self._best = self._stored_best(trainer)
        self._validate_if_left(trainer)
        best, last = self._best, self._validation
        reported = best or last
        if reported is not None:
            metrics = {name: torch.tensor(value, dtype=torch.float64) for name, value in reported.metrics.items()}
            trainer.callback_metrics.update(metrics)
        step, why = trainer.global_step, "export=last"
        if self.export == "best" and best is None:
            why = f"the last step, since no validation measured a finite {self.metric}"
        elif best is not None:
            if best.step != step:
                _load(pl_module, AtomicCheckpointIO().load_checkpoint(self.folder / BEST)["state_dict"])
            extreme = "lowest" if self.mode == "min" else "highest"
            step, why = best.step, f"the {extreme} {self.metric}, {best.metrics[self.metric]:.4g}"
            if last is not None and last.step != step:
                why += f"; after step {last.step} it was {last.metrics[self.metric]:.4g}"
        self.exported = {"step": step, "of": trainer.global_step, "why": why}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Makes a file written after a validation resume like one written before it: at the end of its batch."""
        checkpoint["inputs"] = self.inputs
        if trainer.validating:
            for counts in ("total", "current"):
                checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"][counts]["completed"] -= 1
            if self._unvalidated:
                checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = self._before_validation

    def state_dict(self) -> dict[str, Any]:
        return {"validation": self._validation and list(self._validation), "unvalidated": self._unvalidated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved = state_dict.get("validation")
        self._validation = saved and Validation(*saved)
        self._unvalidated = state_dict.get("unvalidated", False)

    def _validate_if_left(self, trainer: Trainer) -> None:
        if self._unvalidated:
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False  # start from its first batch
            trainer.validating = True  # as the training loop does
            loop.run()
            trainer.training = True
            self._unvalidated = False

    def _path(self, step: int) -> Path:
        return self.folder / f"step={step:08d}.ckpt"

    def _is_due(self, trainer: Trainer) -> bool:
        by_time = self._clock.is_due(trainer)  # asked by all processes, whatever else is due
        return by_time or trainer.global_step % self.every_n_steps == 0 or trainer.should_stop

    def _is_better(self, validation: Validation) -> bool:
        """Whether it is the best so far; one with an infinite, NaN or missing value never is."""
        value = validation.metrics.get(self.metric, math.nan)
        if self._best is None or not math.isfinite(value):
            return math.isfinite(value)
        before = self._best.metrics[self.metric]
        return value < before if self.mode == "min" else value > before

    def _save(self, trainer: Trainer) -> None:
        path = self._path(trainer.global_step)
        with holding(trainer, average=False):
            trainer.save_checkpoint(path)  # on every rank: sharded strategies gather in it
        self.last_path = path
        self._clock.saved()
        if trainer.is_global_zero:
            for old in newest_first(self.folder)[self.keep :]:
                old.unlink()

    def _save_best(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The weights that were validated. Gathers shards, so every rank must call it; the first one writes."""
        with holding(trainer, average=True):
            self._write_best(trainer, pl_module)

    def _write_best(self, trainer: Trainer, pl_module: LightningModule) -> None:
        content: dict[str, Any] = {"state_dict": dict(pl_module.state_dict())}
        pl_module.on_save_checkpoint(content)  # drops weights that are not trained
        state: dict[str, Tensor] = {}
        for name, value in content["state_dict"].items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if trainer.is_global_zero:
                state[name] = whole.detach().cpu()
        if trainer.is_global_zero:
            content |= {"state_dict": state, "validation": list(self._best or ())}
            AtomicCheckpointIO().save_checkpoint(content, self.folder / BEST)

    def _stored_best(self, trainer: Trainer) -> Validation | None:
        """The validation in best.ckpt, the same on every rank; deletes one from a step ahead of this run's.

        Raises CheckpointError if the file is damaged.
        """
        stored, path = None, self.folder / BEST
        if self.export == "best" and trainer.is_global_zero and path.is_file():
            stored = AtomicCheckpointIO().load_checkpoint(path)["validation"]
            if stored[0] > trainer.global_step:
                path.unlink()
                stored = None
        stored = trainer.strategy.broadcast(stored)
        return stored and Validation(*stored)

    def _set_aside(self, step: int) -> None:
        """Renames files from steps after the one where this run begins: `latest` would take them for this run's."""
        for leftover in self.folder.glob("*.ckpt.tmp"):
            leftover.unlink()
        for path in newest_first(self.folder):
            if step_in_name(path) > step:
                renamed = path.with_name(path.name + ".old")
                path.replace(renamed)
                warnings.warn(
                    f"{path} is ahead of step {step}, where this run begins; renamed to {renamed.name}", stacklevel=2
                )


def between_steps(trainer: Trainer) -> bool:
    """Whether gradients are still being accumulated. Holds for Lightning 2.6."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def validates_next(trainer: Trainer) -> bool:
    """Whether a validation follows the batch that is ending, and has data. One always follows the last step."""
    loop, stopping = trainer.fit_loop.epoch_loop, trainer.should_stop
    trainer.should_stop = stopping or trainer.global_step == trainer.max_steps
    # holds for Lightning 2.6
    follows = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
    trainer.should_stop = stopping
    if not follows:
        return False
    trainer.validating = True  # as the loop itself does before it loads the data
    loop.val_loop.setup_data()
    trainer.training = True
    return not loop.val_loop.skip


def _load(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Copies full tensors into a module's."""
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name in state:
            copy_whole_(tensor, state[name])
