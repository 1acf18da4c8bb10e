"""Progress in optimizer steps: a bar on a terminal, a line every few seconds in a log file."""

import math
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor

from components.data.loading.token_count import real_tokens
from components.system.countdown import duration
from components.training.optimizers import base_rate


class StepProgress(ProgressBar):
    """`step 120/450 loss 1.234 18.3k tok/s lr 3.0e-04 eta 12s`: every `seconds`, and at the first and last step.

    On a terminal, the same numbers follow a bar, refreshed at most ten times a second. loss is train/loss if that is
    logged; a module's own metrics are those in its `headline`, a dict of numbers; tok/s counts this rank's real tokens
    since the last report; mfu is the latest train/mfu, of callbacks.throughput; eta is by the pace since this process's
    first step, which takes longer than others. The metrics of a validation are printed on a separate line.
    """

    def __init__(self, seconds: float = 5.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._enabled = True
        self._bar: Progress | None = None

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.console.print(*args, **kwargs)
        elif self._enabled:
            print(*args, **kwargs, flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._total = trainer.estimated_stepping_batches  # by the limit that is reached first
        self._step = trainer.global_step
        self._first_step: int | None = None  # of this process, after which the pace is known
        self._reported = time.perf_counter()
        self._tokens: Tensor | None = None
        self._interval = 0.0  # the first step is reported at once
        if self._enabled and sys.stdout.isatty():
            columns = BarColumn(), TextColumn("{task.description}", markup=False)
            self._bar = Progress(*columns, refresh_per_second=10)
            self._task = self._bar.add_task("", total=self._total, completed=self._step)
            self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._enabled:
            return
        count = real_tokens(batch)
        if count is not None:
            self._tokens = count if self._tokens is None else self._tokens + count
        if trainer.global_step == self._step:
            return  # gradients are still being accumulated
        self._step = trainer.global_step
        if self._first_step is None:
            self._first_step, self._began = self._step, time.perf_counter()
        due = time.perf_counter() - self._reported >= self._interval
        if due or self._step == self._total or trainer.should_stop:
            self._report(trainer, outputs)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._enabled and trainer.num_sanity_val_steps == math.inf:
            self.print("validating before the first step")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        full = not trainer.sanity_checking or trainer.num_sanity_val_steps == math.inf
        if self._enabled and full:
            names = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
            metrics = " ".join(f"{name} {float(trainer.callback_metrics[name]):.4g}" for name in names)
            self.print(f"step {trainer.global_step} {metrics or 'validated'}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _report(self, trainer: Trainer, outputs: Any) -> None:
        line = self._line(trainer, outputs)
        self._reported, self._tokens = time.perf_counter(), None
        if self._bar is None:
            self._interval = self.seconds
            self.print(line)
        else:
            self._interval = 0.1
            self._bar.update(self._task, completed=self._step, description=line)

    def _line(self, trainer: Trainer, outputs: Any) -> str:
        bounded = self._total != float("inf")
        parts = [f"step {self._step}/{self._total}" if bounded else f"step {self._step}"]
        loss = trainer.callback_metrics.get("train/loss")
        if loss is None and isinstance(outputs, dict):
            loss = outputs.get("loss")
        if loss is not None:
            parts.append(f"loss {float(loss):.4g}")
        module: Any = trainer.lightning_module
        parts += [f"{name} {value:.3g}" for name, value in module.headline.items()]
        if self._tokens is not None:
            tokens = float(self._tokens)  # waits for the device, so the time is taken after it
            parts.append(f"{short(tokens / (time.perf_counter() - self._reported))} tok/s")
        if "train/mfu" in trainer.callback_metrics:
            parts.append(f"mfu {float(trainer.callback_metrics['train/mfu']):.0%}")
        if trainer.optimizers:
            parts.append(f"lr {base_rate(trainer.optimizers[0]):.1e}")
        if bounded and self._first_step is not None and self._step > self._first_step:
            pace = (time.perf_counter() - self._began) / (self._step - self._first_step)
            parts.append(f"eta {duration(pace * (self._total - self._step))}")
        return " ".join(parts)


def short(number: float) -> str:
    """Three significant digits and a unit: 18.3k, 1.25M, 950."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
