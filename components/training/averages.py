"""Metrics of an optimizer step, a validation or a rollout: weighted means over batches and processes."""

from collections.abc import Callable

import torch
from torch import Tensor

Reduce = Callable[[Tensor, str], Tensor]  # (numbers, "sum" or "max") over all processes


class Averages:
    """Weighted means and maxima by name. They stay on the device until they are read.

    A mean over unequal batches, or processes' unequal shares, is correct only if weighted by the number of items it
    averages: tokens, pairs, prompts or responses. Every process must add the same names in the same order.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # (Σ weight · value, Σ weight)
        self._maxima: dict[str, Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._sums or self._maxima)

    def add(self, name: str, value: Tensor | float, weight: Tensor | float, *, maximum: bool = False) -> None:
        """Adds a scalar `value`: the mean over `weight` items, or a maximum, whose weight is ignored."""
        value = torch.as_tensor(value).detach()
        value = value.to(torch.float32 if value.device.type == "mps" else torch.float64)
        if maximum:
            self._maxima[name] = torch.maximum(self._maxima[name], value) if name in self._maxima else value
            return
        weight = weight.to(value.dtype) if isinstance(weight, Tensor) else torch.full_like(value, weight)
        pair = torch.stack([value * weight, weight])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def read(self, reduce: Reduce) -> dict[str, Tensor]:
        """All metrics over all processes, in two collectives; a mean over nothing is NaN."""
        metrics: dict[str, Tensor] = {}
        if self._sums:
            sums = reduce(torch.stack(list(self._sums.values())), "sum")
            metrics |= dict(zip(self._sums, sums[:, 0] / sums[:, 1], strict=True))
        if self._maxima:
            metrics |= dict(zip(self._maxima, reduce(torch.stack(list(self._maxima.values())), "max"), strict=True))
        return metrics

    def clear(self) -> None:
        self._sums, self._maxima = {}, {}
