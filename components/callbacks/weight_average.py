"""An exponential moving average of the trained weights, which validations measure and the artifact contains."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from lightning import Callback, LightningModule, Trainer
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from components.models.shards import copy_whole_, in_shards, local_part

Decay = Annotated[float, Field(gt=0, lt=1)]


class WeightAverage(Callback):
    """Averages the trained weights of the exported model over the optimizer steps.

    After step t the average is Σ decay^(t−i)·w_i / Σ decay^(t−i) over the steps i = 1 … t: with the bias correction of
    Adam, weights from before the first step have no part in it. It is in float32 (float64 for weights in it). A step
    that is skipped, by a guard or a gradient scaler, does not count.

    A validation measures the average, and so best.ckpt contains it; when the fit ends, before the hooks of later
    callbacks and of the module, the weights become their average. Training itself uses the weights as they are, so it
    takes the same steps as without the average: an on-policy stage samples from them, and its metrics of rollouts are
    theirs. A checkpoint contains both. List it before `Checkpoints`, and before what reads the weights in on_fit_end.

    Lightning's EMAWeightAveraging copies the whole module with its frozen networks, does not support sharded weights,
    and would write the average as the weights to a checkpoint in the middle of a validation.
    Sources: Polyak & Juditsky 1992; Kingma & Ba 2015, section 3 (bias correction); Tarvainen & Valpola 2017.
    """

    def __init__(self, decay: Decay) -> None:
        self.decay = decay
        self.steps = 0  # averaged over
        self._weights: dict[str, nn.Parameter] = {}  # this process's part, if they are sharded
        self._averages: dict[str, Tensor] = {}
        self._saved: dict[str, Tensor] | None = None  # whole averages from a checkpoint
        self._own: dict[str, Tensor] | None = None  # the weights themselves, while the module has their averages
        self._writes = True  # whether this is the process that writes checkpoints
        self._ended = False  # whether the module keeps its averages

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._follow(trainer, pl_module)
        trainer.optimizers[0].register_step_post_hook(lambda *_: self._update())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._follow(trainer, pl_module)
        self._swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_out(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not in on_train_end, which a run resumed from its last step never reaches."""
        self._follow(trainer, pl_module)
        self._swap_in(pl_module)
        self._own, self._ended = None, True

    def state_dict(self) -> dict[str, Any]:
        """Gathers shards, so every rank must call it; the first one gets them."""
        averages: dict[str, Tensor] = {}
        for name, average in self._averages.items():
            whole = average.full_tensor().cpu() if isinstance(average, DTensor) else average
            if self._writes:
                averages[name] = whole
        return {"steps": self.steps, "averages": averages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self._saved = state_dict["steps"], state_dict["averages"]

    def _follow(self, trainer: Trainer, pl_module: Any) -> None:
        """Finds the weights to average, in shards as the optimizer has them; once.

        Raises ValueError if the run resumes from a checkpoint without an average.
        """
        if self._weights:
            return
        if trainer.global_step and self._saved is None:
            raise ValueError(
                "ema_decay: the checkpoint to resume from has no average of the weights. Start from scratch with "
                "resume=never, or resume without one: ema_decay=null"
            )
        self._writes = trainer.is_global_zero
        with in_shards(pl_module):
            named = pl_module.exportable().named_parameters()
            self._weights = {name: weight for name, weight in named if weight.requires_grad}
            for name, weight in self._weights.items():
                wide = torch.promote_types(weight.dtype, torch.float32)
                self._averages[name] = weight.detach().clone().to(wide)
                if self._saved:
                    copy_whole_(self._averages[name], self._saved[name])
        self._saved = {}  # they are copied

    @torch.no_grad()
    def _update(self) -> None:
        if all(weight.grad is None for weight in self._weights.values()):
            return
        self.steps += 1
        share = (1 - self.decay) / (1 - self.decay**self.steps)
        for average, weight in zip(self._averages.values(), self._weights.values(), strict=True):
            local = local_part(average)
            local.lerp_(local_part(weight).to(local.dtype), share)

    def _swap_in(self, pl_module: LightningModule) -> None:
        """Gives the module the averages, if there are any yet and it does not have them."""
        if self.steps and self._own is None and not self._ended:
            self._own = {name: local_part(weight).detach().clone() for name, weight in self._weights.items()}
            self._fill(pl_module, self._averages)

    def _swap_out(self, pl_module: LightningModule) -> None:
        if self._own is not None:
            self._fill(pl_module, self._own)
            self._own = None

    @torch.no_grad()
    def _fill(self, pl_module: LightningModule, values: dict[str, Tensor]) -> None:
        with in_shards(pl_module):
            for name, weight in self._weights.items():
                local_part(weight).copy_(local_part(values[name]))

    @contextmanager
    def holding(self, pl_module: LightningModule, *, average: bool) -> Iterator[None]:
        """Inside this context the module has the average, or the weights themselves, whichever it has outside."""
        had = self._own is not None
        if had != average:
            (self._swap_in if average else self._swap_out)(pl_module)
        try:
            yield
        finally:
            if had != average:
                (self._swap_out if average else self._swap_in)(pl_module)


@contextmanager
def holding(trainer: Trainer, *, average: bool) -> Iterator[None]:
    """`WeightAverage.holding` of the trainer's module; without that callback, nothing changes."""
    found = [callback for callback in trainer.callbacks if isinstance(callback, WeightAverage)]  # type: ignore[attr-defined]
    if not found:
        yield
        return
    with found[0].holding(trainer.lightning_module, average=average):
        yield
