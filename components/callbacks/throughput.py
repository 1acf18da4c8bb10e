"""The speed of a run, and how much of the machine it uses."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from components.data.loading.token_count import real_tokens


class Throughput(Callback):
    """Logs every `trainer.log_every_n_steps` steps, as the mean over the steps since the last log:

    train/tokens_per_second   real tokens of all ranks' training batches per second, filler not counted.
    train/step_seconds        wall time of an optimizer step: fetching, all micro-batches, the update; mean over ranks.
    train/data_wait_share     share of that time, over all ranks, outside training step, backward and update: waiting
                              for the next batch (in on-policy stages, for rollouts) and other callbacks. Near 0 is
                              healthy in stages that only read data.
    train/mfu                 model FLOP utilization, 0 to 1: tokens/s · FLOPs per token / (ranks · peak of one device).
                              Only for stages with `flops_per_token()`. Rollouts are not counted as work, although their
                              time is (callbacks/budget.py counts them). The peak is `measured_peak` at the start, not
                              a data sheet's, which is higher, so this is higher than published numbers.
    train/peak_memory_mb      on a GPU: peak memory of tensors so far, the maximum over ranks, in 2^20 bytes.

    Validation is not counted, nor are the first `warmup_steps` steps (allocation, compilation).
    """

    def __init__(self, warmup_steps: int = 2) -> None:
        if warmup_steps < 0:
            raise ValueError(f"Throughput: expected warmup_steps of at least 0, got {warmup_steps}")
        self.warmup_steps = warmup_steps
        self._tokens: Tensor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._flops_per_token: float | None = pl_module.flops_per_token()
        self.peak = 0.0
        if self._flops_per_token is not None:
            self.peak = measured_peak(pl_module.device, compute_dtype(trainer.precision, pl_module.device))
        self._step = self._first_step = trainer.global_step
        self._restart()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        self._waited += time.perf_counter() - self._ended

    def on_train_batch_end(
        self, trainer: Any, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self._ended = time.perf_counter()
        count = real_tokens(batch)
        if count is not None:
            self._tokens = count if self._tokens is None else self._tokens + count
        if trainer.global_step == self._step:
            return  # gradients are still being accumulated
        self._step = trainer.global_step
        if self._step - self._first_step <= self.warmup_steps:
            self._restart()
            return
        self._steps += 1
        if trainer.log_every_n_steps and self._step % trainer.log_every_n_steps == 0:
            self._log(trainer, pl_module)
            self._restart()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused_at = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            pause = time.perf_counter() - self._paused_at
            self._began += pause
            self._ended += pause

    def _restart(self) -> None:
        self._began = self._ended = time.perf_counter()
        self._waited = 0.0  # seconds
        self._steps = 0
        self._tokens = None  # on the device until it is logged

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reduce, device = trainer.strategy.reduce, trainer.strategy.root_device
        tokens = None
        if self._tokens is not None:  # reading it waits for the device, so the time is taken after it
            tokens = float(reduce(self._tokens, reduce_op="sum"))
        own = torch.tensor([time.perf_counter() - self._began, self._waited], device=device)
        seconds, waited = (reduce(own, reduce_op="sum") / trainer.world_size).tolist()
        metrics = {
            "train/step_seconds": seconds / self._steps,
            "train/data_wait_share": waited / seconds,
        }
        if tokens is not None:
            metrics["train/tokens_per_second"] = tokens / seconds
            if self._flops_per_token is not None:
                peak = self.peak * trainer.world_size
                metrics["train/mfu"] = tokens / seconds * self._flops_per_token / peak
        if device.type == "cuda":
            memory = torch.tensor(torch.cuda.max_memory_allocated(device) / 2**20, device=device)
            metrics["train/peak_memory_mb"] = float(reduce(memory, reduce_op="max"))
        pl_module.log_dict(metrics, on_step=True, on_epoch=False)


def measured_peak(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.2) -> float:
    """FLOP/s of the fastest of the matrix products that fit in about `seconds`, the first (warmup) not counted.

    Square matrices, of side 1024 on a CPU and 8192 elsewhere: large enough to be compute-bound. One product of n × n
    matrices is 2·n³ FLOPs.
    """
    side = 1024 if device.type == "cpu" else 8192
    left = torch.randn(side, side, device=device).to(dtype)  # products of zeros or ones are faster on some devices
    best = float("inf")
    end = time.perf_counter() + seconds
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        (left @ left)[0, 0].item()  # reading an entry waits for the device
        while best == float("inf") or time.perf_counter() < end:
            start = time.perf_counter()
            (left @ left)[0, 0].item()
            best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype in which a trainer of this precision multiplies matrices; 16-mixed means bf16 on a CPU."""
    if precision.startswith("bf16") or (precision == "16-mixed" and device.type == "cpu"):
        return torch.bfloat16
    if precision.startswith("16"):
        return torch.float16
    return torch.float64 if precision.startswith("64") else torch.float32
