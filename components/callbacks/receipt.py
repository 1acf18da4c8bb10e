"""What a run was predicted to take, and what it took."""

import math
import resource
import sys
import time
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer

from components.data.loading.token_count import real_tokens
from components.system.countdown import duration
from components.training.contract import Reporting

TIMED = 3.0  # seconds of training, from which all of it is predicted …
SHARE = 0.1  # … or this share of its steps, if that is less


class Figure(NamedTuple):
    """A quantity as predicted and as measured; None if unknown."""

    predicted: float | None
    actual: float | None


class Receipt(Callback):
    """Fills `figures` when training ends, for the card: {name: (predicted, actual)}.

    seconds   of training, rollouts included, without validation. Predicted from the first steps, except
              the very first one (or those on the first rollout, if there are rollouts), as if each took the time of a
              batch of average length.
    flops     predicted: from the settings, by `components.planning`; actual: from the tokens that were read
              (callbacks/budget.py).
    memory    peak bytes of one process: resident on a CPU, allocated on a GPU. Predicted before the first step: what is
              taken then, plus the estimate of a step (training/recomputing.py) that gradient_checkpointing=auto makes.

    flops: of the whole run, by its settings; None if they do not say how much is trained on. A run that resumes has
    no receipt, since it did only part of the work.
    """

    def __init__(self, flops: float | None) -> None:
        self.flops = flops
        self.figures: dict[str, Figure] = {}
        self._validating = 0.0  # seconds

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._step, self._total = trainer.global_step, trainer.estimated_stepping_batches
        self._whole = self._step == 0
        reporting = pl_module if isinstance(pl_module, Reporting) else Reporting()
        self._every = reporting.steps_per_rollout
        self._timed: tuple[int, float] | None = None  # the steps after which timing began, and when that was
        self._mean = reporting.mean_batch()  # tokens
        self._batches, self._tokens = 0, torch.zeros((), dtype=torch.int64, device=pl_module.device)  # that were timed
        self._memory = None if reporting.step_bytes is None else _taken(pl_module.device) + reporting.step_bytes
        self._seconds: float | None = None
        if trainer.is_global_zero and self._memory is not None:
            print(f"{'plan':<8}about {self._memory / 1e9:.1f} GB in memory", flush=True)
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if self._timed is not None and self._seconds is None and self._mean is not None:
            count = real_tokens(batch)
            if count is not None:
                self._batches, self._tokens = self._batches + 1, self._tokens + count
        if trainer.global_step == self._step:
            return  # gradients are still being accumulated
        step = self._step = trainer.global_step
        if self._seconds is not None or not self._whole or step % self._every or math.isinf(self._total):
            return
        now = self._training()
        if self._timed is None:
            self._timed = step, now
            return
        first, began = self._timed
        if now - began >= TIMED or step - first >= SHARE * self._total:
            seconds = (now - began) / (step - first)  # of a step
            if self._mean is not None and self._batches:
                seconds *= self._mean * self._batches / max(int(self._tokens), 1)
            self._seconds = now + (self._total - step) * seconds
            if trainer.is_global_zero:
                print(f"{'plan':<8}about {duration(self._seconds)} of training", flush=True)

    def _training(self) -> float:
        """Seconds since training began, without validation."""
        return time.perf_counter() - self._began - self._validating

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validating += time.perf_counter() - self._paused

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._took = self._training()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After Budget has its totals. A run resumed from its last step trains nothing."""
        if not getattr(self, "_whole", False):
            return
        flops = trainer.callback_metrics.get("budget/flops")
        self.figures = {
            "seconds": Figure(self._seconds, self._took),
            "flops": Figure(self.flops, None if flops is None else float(flops)),
            "memory": Figure(self._memory, _most(pl_module.device)),
        }


def _taken(device: torch.device) -> float:
    """Bytes that this process takes now."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    try:
        with open("/proc/self/statm") as statm:
            return float(int(statm.read().split()[1]) * resource.getpagesize())
    except OSError:  # no /proc: the peak so far
        return _most(device)


def _most(device: torch.device) -> float:
    """Peak bytes of this process so far."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
