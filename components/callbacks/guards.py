"""Stopping a run that has diverged, before it overwrites a good checkpoint."""

import math

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor


class TrainingDiverged(ValueError):
    """The loss or a weight is no longer a finite number."""


class NanGuard(Callback):
    """Ends training with TrainingDiverged at a NaN or infinite loss.

    On CPU the loss is checked before its backward pass, so no weight has seen it. On an accelerator reading
    the loss would make every step wait for the device; there its finiteness is copied in the background and
    read one step later. In both cases nothing that is not finite gets into a checkpoint: before one is
    written, the pending check is waited for and the trainable weights are looked at as well (a finite loss
    can have a NaN gradient).
    """

    def __init__(self) -> None:
        self._pending: tuple[Tensor, torch.Event | None, int, int] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pending = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._resolve(trainer)
        loss = loss.detach()
        arrived = None
        value = loss.to("cpu", torch.float32, non_blocking=True)
        if loss.device.type != "cpu":
            arrived = torch.Event(loss.device)
            arrived.record()
        self._pending = (value, arrived, trainer.global_step, trainer.fit_loop.epoch_loop.batch_idx)
        if arrived is None:
            self._resolve(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        self._resolve(trainer)
        trainable = [name for name, parameter in pl_module.named_parameters() if parameter.requires_grad]
        for name in trainable:
            if name in checkpoint["state_dict"] and not checkpoint["state_dict"][name].isfinite().all():
                raise TrainingDiverged(
                    f"the weight {name} is not finite after step {trainer.global_step}, though the loss was: "
                    f"the gradient overflowed. {_how_to_go_on(trainer)}"
                )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resolve(trainer)

    def _resolve(self, trainer: Trainer) -> None:
        """Waits for the last loss that was noted (not for what the device does after it) and judges it."""
        if self._pending is None:
            return
        value, arrived, step, batch_idx = self._pending
        self._pending = None
        if arrived is not None:
            arrived.synchronize()
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"the loss became {float(value)} in step {step + 1} (batch {batch_idx}, rank "
                f"{trainer.global_rank}), expected a finite number. {_how_to_go_on(trainer)}"
            )


def _how_to_go_on(trainer: Trainer) -> str:
    path = getattr(trainer.checkpoint_callback, "last_path", None)
    kept = f"The last checkpoint, {path}, is from before" if path else "No checkpoint had been written yet"
    return f"{kept}. Try again with a lower learning rate or a longer warm-up (stage.optimizer.lr=...)"
