"""ORPO: fine-tunes on the better answers of comparisons and raises their odds over the worse ones, in one loss."""

from typing import Any

from torch import Tensor

from components.functional.losses import orpo
from components.stages.reference_free import ReferenceFree
from components.system.limits import NonNegative


class ORPO(ReferenceFree):
    """Odds ratio preference optimization (Hong et al. 2024, eq. 6). weight: see functional.losses.orpo."""

    def __init__(
        self,
        weight: NonNegative = 0.1,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.weight = weight

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return orpo(chosen, rejected, weight=self.weight)
