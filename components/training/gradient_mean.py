"""Gradients that are one mean over an optimizer step, regardless of its number of micro-batches and processes."""

from collections.abc import Iterator
from typing import Protocol

import lightning as L
import torch
from torch import Tensor, nn

from components.models.shards import local_part
from components.training.contract import Term


class InProcesses(Protocol):
    """What GradientMean needs of the module whose gradients it averages."""

    @property
    def trainer(self) -> L.Trainer: ...

    @property
    def device(self) -> torch.device: ...

    def all_reduced(self, value: float | Tensor) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


class GradientMean:
    """Scales each micro-batch's loss before its backward pass, and the summed gradients after the last one's.

    Lightning divides a loss by the number of micro-batches and the strategy averages over processes, which is the mean
    over all tokens (pairs, prompts) only if every share has the same number of them.
    """

    def __init__(self) -> None:
        self._window: list[Tensor] = []  # weights of the micro-batches since the last optimizer step
        self._unit = torch.ones(())

    def scaled(self, terms: tuple[Term, ...], module: InProcesses) -> Tensor:
        """The sum of the terms, each scaled so that its gradients add up to its mean over the whole optimizer step.

        Raises ValueError for several terms whose weights in the whole step are not known.
        """
        micro_batches = module.trainer.accumulate_grad_batches
        parts = micro_batches * module.trainer.world_size
        if len(terms) == 1:
            mean, weight, _ = terms[0]
            return mean if parts == 1 else mean * self._share(weight, module).to(mean.dtype)
        weights = [term.weight if micro_batches == 1 else term.step_weight for term in terms]
        if any(weight is None for weight in weights):
            raise ValueError(
                f"trainer.accumulate_grad_batches: got {micro_batches} with a loss of {len(terms)} terms, but the "
                "batches lack their weights in the whole step. Use 1, or a loader that adds them, as "
                "components.data.loading.experience does"
            )
        if parts == 1:
            return torch.stack([term.mean for term in terms]).sum()
        totals = module.all_reduced(torch.stack([_number(w, module.device).float() for w in weights]))
        # parts is what Lightning and the strategy divide by
        shares = [
            term.mean * (parts * _number(term.weight, module.device) / total.clamp_min(1)).float()
            for term, total in zip(terms, totals, strict=True)
        ]
        return torch.stack(shares).sum()

    def finish(self, module: InProcesses) -> None:
        """Turns the gradients of all micro-batches, weighted sums until now, into the mean."""
        if not self._window:
            return
        total = module.all_reduced(torch.stack(self._window).sum())
        parts = module.trainer.accumulate_grad_batches * module.trainer.world_size  # what Lightning and DDP divided by
        # one dimension, so type promotion counts its dtype: in bf16 the product would be rounded
        factor = (parts * self._unit / total.clamp_min(1)).reshape(1)
        for gradient in (local_part(p.grad) for p in module.parameters() if p.grad is not None):
            wide = torch.promote_types(gradient.dtype, torch.float32)
            torch.mul(gradient, factor.to(wide), out=gradient)
        self._window.clear()

    def _share(self, weight: Tensor | int, module: InProcesses) -> Tensor:
        """The factor of this micro-batch, so gradients add up to a weighted sum, which `finish` divides.

        Factors are relative to the first micro-batch's mean weight over processes, so the scaled loss stays close to
        its usual size in fp16.
        """
        here = _number(weight, module.device)
        if not self._window:
            self._unit = (module.all_reduced(here) / module.trainer.world_size).clamp_min(1)
        self._window.append(here)
        return here / self._unit


def _number(value: Tensor | int | None, device: torch.device) -> Tensor:
    """A scalar on the device, without a copy from the host, which would be waited for."""
    assert value is not None
    return value.to(device) if isinstance(value, Tensor) else torch.full((), value, device=device)
