"""What a run was predicted to take before its first step, beside what it took."""

import resource
import sys
import time
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer

from components.callbacks.throughput import Throughput
from components.system.countdown import duration
from components.training.contract import Reporting

SHARE = 0.4  # of the measured peak, in training; small models reach less, large ones more


class Figure(NamedTuple):
    """predicted, actual: None if unknown."""

    predicted: float | None
    actual: float | None


class Receipt(Callback):
    """Fills `figures` when training ends, for the card: {name: (predicted, actual)}.

    seconds   of training, rollouts included, without validation. Predicted: flops / (SHARE · the peak that Throughput
              measures · processes).
    flops     predicted: from the settings, by `components.planning`; actual: from the tokens that were read
              (callbacks/budget.py).
    memory    bytes of one process at its most: resident on a CPU, allocated on a GPU. Predicted: what is taken when
              training starts, and the estimate of a step (training/recomputing.py), which gradient_checkpointing=auto
              makes.

    flops: of the whole run, as its settings say; None if they do not say how much is trained on. A run that resumes has
    no receipt, since it did only part of the work.
    """

    def __init__(self, flops: float | None) -> None:
        self.flops = flops
        self.figures: dict[str, Figure] = {}
        self._validating = 0.0  # seconds

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._whole = trainer.global_step == 0
        peaks = [c.peak for c in trainer.callbacks if isinstance(c, Throughput)]  # type: ignore[attr-defined]
        step = pl_module.step_bytes if isinstance(pl_module, Reporting) else None
        self._memory = None if step is None else _taken(pl_module.device) + step
        rate = sum(peaks) * SHARE * trainer.world_size
        self._seconds = self.flops / rate if self.flops and rate else None
        if trainer.is_global_zero and (line := self._line()):
            print(line, flush=True)
        self._began = time.perf_counter()

    def _line(self) -> str:
        """The prediction, in the form of callbacks/header.py. "At least": small models run below SHARE, and temporary
        tensors are not counted (docs/planning.md has how far it was off)."""
        parts = [] if self._seconds is None else [f"{duration(self._seconds)} of training"]
        parts += [] if self._memory is None else [f"{self._memory / 1e9:.1f} GB in memory"]
        return f"{'plan':<8}at least {', '.join(parts)}" if parts else ""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validating += time.perf_counter() - self._paused

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._took = time.perf_counter() - self._began - self._validating

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
    except OSError:  # no /proc: what it took at its most, so far
        return _most(device)


def _most(device: torch.device) -> float:
    """Bytes that this process has taken at its most."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
