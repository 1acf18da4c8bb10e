"""Stops a run that has diverged, before it overwrites a good checkpoint."""

import logging
import math
import statistics
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from components.callbacks.checkpoints import between_steps
from components.functional.host_copy import HostCopy

log = logging.getLogger(__name__)
LARGEST = 2.0**64  # up to this scale of a gradient scaler, an infinite scaled loss means an infinite loss
SMALLEST = 2.0**-24  # below this scale half precision cannot represent a gradient: its smallest number above 0


class TrainingDiverged(ValueError):
    """The loss or a weight is not finite, or the loss spiked."""


class NanGuard(Callback):
    """Ends training with TrainingDiverged at a NaN or infinite loss.

    On a CPU, the loss is checked before its backward pass, so it changes no weight; where a SpikeGuard skips steps with
    such a loss, it is not checked here. On an accelerator, reading the loss would make every step wait for the device;
    there it is copied in the background and checked one step later. In both cases nothing that is not finite gets into
    a checkpoint: before one is written, the pending check is completed and the trainable weights are checked as well (a
    finite loss can have a NaN gradient).
    A gradient scaler (16-mixed) skips a step whose gradient is not finite and halves its scale, which is not a
    divergence. A scale near 0 is one: no step would ever be taken again.
    """

    def __init__(self) -> None:
        self._pending: tuple[HostCopy, int, int] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pending = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if any(isinstance(other, SpikeGuard) and other.action == "skip" for other in trainer.callbacks):  # type: ignore[attr-defined]
            return  # it skips such a step
        self._resolve(trainer)
        self._pending = (HostCopy(loss.detach().float()), trainer.global_step, trainer.fit_loop.epoch_loop.batch_idx)
        if loss.device.type == "cpu":
            self._resolve(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        scale = _scale(trainer)
        if scale < SMALLEST:
            raise TrainingDiverged(
                f"step {trainer.global_step + 1}: the gradient scaler's scale fell to {scale:.1e}: the gradient is not "
                f"finite at any scale. {_how_to_continue(trainer)}"
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        self._resolve(trainer)
        trainable = [name for name, parameter in pl_module.named_parameters() if parameter.requires_grad]
        for name in trainable:
            if name in checkpoint["state_dict"] and not checkpoint["state_dict"][name].isfinite().all():
                raise TrainingDiverged(
                    f"the weight {name} is not finite after step {trainer.global_step}, although the loss was: "
                    f"the gradient overflowed. {_how_to_continue(trainer)}"
                )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resolve(trainer)

    def _resolve(self, trainer: Trainer) -> None:
        """Waits for the pending loss (not for later device work) and checks it."""
        if self._pending is None:
            return
        copy, step, batch_idx = self._pending
        self._pending = None
        value = copy.read()
        if not math.isfinite(value) and not (math.isinf(value) and _scale(trainer) > LARGEST):
            raise TrainingDiverged(
                f"the loss became {float(value)} in step {step + 1} (batch {batch_idx}, rank "
                f"{trainer.global_rank}), expected a finite number. {_how_to_continue(trainer)}"
            )


def _scale(trainer: Trainer) -> float:
    """The factor by which a gradient scaler multiplies the loss before its backward pass; 1 without one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else scaler.get_scale()


def _own_loss(trainer: Trainer, pl_module: Any, loss: Tensor) -> Tensor:
    """The mean loss of a micro-batch, inf if it is not finite, on its device: as a stage keeps it, without its share of
    the step or a scaler's scale; for any other module, computed from the loss that its backward pass starts from. −inf
    if the micro-batch has no targets, or if the scale alone could have made the loss infinite."""
    if pl_module.micro_batch is not None:
        own, weight = pl_module.micro_batch
        counts = (weight.to(own.device) if isinstance(weight, Tensor) else torch.full_like(own, weight)) > 0
    else:
        scale = _scale(trainer)
        own = loss.detach() / (scale / trainer.accumulate_grad_batches)
        counts = ~(loss.detach().isinf() & (scale > LARGEST))
    own = own.float()
    return torch.where(counts, torch.where(own.isfinite(), own, math.inf), -math.inf)


def _how_to_continue(trainer: Trainer) -> str:
    path = getattr(trainer.checkpoint_callback, "last_path", None)
    kept = f"The last checkpoint, {path}, predates this" if path else "No checkpoint had been written yet"
    return f"{kept}. Try a lower learning rate (stage.optimizer.lr) or a longer warmup (stage.schedule.warmup_steps)"


class SpikeGuard(Callback):
    """What to do about an optimizer step with a loss spike: `action` "off", "skip" or "stop".

    A loss is a spike if it is not finite, or more than `deviations` standard deviations above the mean of the last
    `window` steps without one (the first window/2 steps are only recorded). "skip" drops the step's gradients, so
    neither the weights nor the optimizer's averages change, and warns; more than `max_skips` in a row end training.
    "stop" ends it at once. Either way the error is TrainingDiverged. The loss of a step is the largest mean loss of its
    micro-batches on all processes, so all processes make the same decision, regardless of their shares of the step and
    the scale of a gradient scaler. A GPU is waited for only until it has computed the step's last loss: by then its
    backward pass is launched. The recorded losses are saved in checkpoints.
    """

    def __init__(
        self,
        action: Literal["off", "skip", "stop"] = "off",
        window: int = 100,
        deviations: float = 6.0,
        max_skips: int = 10,
    ) -> None:
        """Raises ValueError for a window below 4, or another value below 1."""
        if window < 4 or deviations < 1 or max_skips < 1:
            raise ValueError(
                f"SpikeGuard: expected window of at least 4, deviations and max_skips of at least 1, got {window}, "
                f"{deviations} and {max_skips}"
            )
        self.action, self.window, self.deviations, self.max_skips = action, window, deviations, max_skips
        self._losses: list[float] = []
        self._worst: Tensor | None = None  # loss of this step's micro-batches on this process
        self._worst_of_all: HostCopy | None = None  # and on all, once the last is known
        self._skipped = 0  # in a row

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self.action == "off":
            return
        own = _own_loss(trainer, pl_module, loss)
        self._worst = own if self._worst is None else torch.maximum(self._worst, own)
        if not between_steps(trainer):
            self._worst_of_all = HostCopy(trainer.strategy.reduce(self._worst, reduce_op="max"))
            self._worst = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._worst_of_all is None:
            return  # off
        loss, limit = float(self._worst_of_all.read()), self._limit()
        if loss == -math.inf:
            return  # no loss in this step
        if loss <= limit and math.isfinite(loss):
            self._losses = [*self._losses, loss][-self.window :]
            self._skipped = 0
            return
        self._skipped += 1
        spike = f"step {trainer.global_step + 1}: the loss jumped to {loss:.4g}, expected at most {limit:.4g}"
        if self.action == "stop" or self._skipped > self.max_skips:
            many = f", after {self.max_skips} skipped steps in a row" if self.action == "skip" else ""
            raise TrainingDiverged(f"{spike}{many}. {_how_to_continue(trainer)}")
        for parameter in pl_module.parameters():
            parameter.grad = None
        if trainer.is_global_zero:
            log.warning(f"{spike}; its gradients are dropped ({self._skipped} of at most {self.max_skips} in a row)")

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self._losses), "skipped": self._skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._losses, self._skipped = list(state_dict["seen"]), state_dict["skipped"]

    def _limit(self) -> float:
        if len(self._losses) < self.window // 2:
            return math.inf
        return statistics.fmean(self._losses) + self.deviations * statistics.pstdev(self._losses)
