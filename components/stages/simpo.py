"""SimPO: trains a policy on comparisons by the mean log-probability of answers, without a reference model."""

from collections.abc import Callable

from torch import Tensor
from torch.optim import Optimizer

from components.functional.losses import simpo
from components.models.heads import CausalLM
from components.stages.reference_free import ReferenceFree
from components.system.limits import NonNegative, Positive
from components.training.contract import ALONE, RunContext


class SimPO(ReferenceFree):
    """Simple preference optimization (Meng et al. 2024, eq. 6). beta, margin: see functional.losses.simpo."""

    def __init__(
        self,
        policy: Callable[[], CausalLM],
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., float],
        beta: Positive,
        margin: NonNegative,
        run: RunContext = ALONE,
    ) -> None:
        super().__init__(policy, optimizer, schedule, run)
        self.beta, self.margin = beta, margin

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return simpo(chosen, rejected, beta=self.beta, margin=self.margin)
