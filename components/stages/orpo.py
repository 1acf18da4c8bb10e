"""ORPO: fine-tunes on the better answers of comparisons and raises their odds over the worse ones, in one loss."""

from collections.abc import Callable

from torch import Tensor
from torch.optim import Optimizer

from components.functional.losses import orpo
from components.models.heads import CausalLM
from components.stages.reference_free import ReferenceFree
from components.system.limits import NonNegative
from components.training.contract import ALONE, RunContext


class ORPO(ReferenceFree):
    """Odds ratio preference optimization (Hong et al. 2024, eq. 6). weight: see functional.losses.orpo."""

    def __init__(
        self,
        policy: Callable[[], CausalLM],
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., float],
        weight: NonNegative,
        run: RunContext = ALONE,
    ) -> None:
        super().__init__(policy, optimizer, schedule, run)
        self.weight = weight

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return orpo(chosen, rejected, weight=self.weight)
