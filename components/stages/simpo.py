"""SimPO: trains a policy on comparisons by the mean log-probability of answers, without a reference model."""

from typing import Any

from torch import Tensor

from components.functional.losses import simpo
from components.stages.reference_free import ReferenceFree
from components.system.limits import NonNegative, Positive


class SimPO(ReferenceFree):
    """Simple preference optimization (Meng et al. 2024, eq. 6). beta, margin: see functional.losses.simpo."""

    def __init__(
        self,
        beta: Positive = 2.0,
        margin: NonNegative = 0.5,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.beta, self.margin = beta, margin

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return simpo(chosen, rejected, beta=self.beta, margin=self.margin)
