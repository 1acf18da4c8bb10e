"""What a run passes to its stage, what a stage's loss returns, and what callbacks read of a stage.

Nothing is set on a stage from outside, and reading one of its collections does not empty it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from components.models.lora import LoRA


@dataclass(frozen=True)
class RunContext:
    """What a run decides for every stage alike; passed to the constructor as `run`.

    seed: of all random numbers in training. lora: adapters to train instead of all weights.
    gradient_checkpointing: activations inside layers are recomputed in the backward pass, not kept; auto: if keeping
    them would not fit in the memory that is free when training starts. compile: layers are compiled with torch.compile;
    auto: as training.compiling decides. fresh: the model starts from random weights. reward_is_adapter: the reward
    model's artifact holds adapters of the trunk that the policy starts from.
    """

    seed: int = 0
    lora: LoRA | None = None
    gradient_checkpointing: bool | Literal["auto"] = False
    compile: bool | Literal["auto"] = False
    fresh: bool = True
    reward_is_adapter: bool = False


ALONE = RunContext()  # for a stage built outside a run


class Term(NamedTuple):
    """A term of a loss: a mean times its coefficient, and weight, the number of tokens, pairs or prompts it averages.

    step_weight: the sum of this weight over all micro-batches of the optimizer step, on this process, if the batch
    contains it.
    """

    mean: Tensor
    weight: Tensor | int
    step_weight: Tensor | None = None


class LossOutput(NamedTuple):
    """terms: the loss is their sum. metrics: detached scalars, means over the same items as the first term.

    weights: the weight of each metric that is a mean over other items. A metric whose name ends in _max is a maximum.
    """

    terms: tuple[Term, ...]
    metrics: dict[str, Tensor]
    weights: dict[str, Tensor | int] = {}

    @property
    def loss(self) -> Tensor:
        return sum((term.mean for term in self.terms[1:]), self.terms[0].mean)

    @property
    def weight(self) -> Tensor | int:
        """The weight of the first term."""
        return self.terms[0].weight


class Chart(NamedTuple):
    """One chart of a stage's dashboard: the metrics' logged names, and the healthy range if there is one."""

    title: str
    tags: tuple[str, ...]
    low: float | None = None
    high: float | None = None


class Spent(NamedTuple):
    """The cost of rollouts since this process began, of this process alone."""

    generated_tokens: int = 0
    flops: int = 0


class Reporting:
    """What callbacks read of a module, with defaults for a module that has nothing to report.

    charts: of its dashboard, in reading order, with the healthy ranges of its docstring. headline: metrics for the
    progress line. memory: the estimate of a step's memory and the decision that it led to, in words; "" if none was
    made. step_bytes: that estimate, in bytes on top of the weights; None without one.
    micro_batch: the latest micro-batch's loss, unscaled, and its weight; None if the module keeps none.
    max_new_tokens: the most tokens that a response can have; None without responses. samples_at_hand: whether
    sample_texts() only returns what was kept, without running a model. steps_per_rollout: optimizer steps on each
    rollout; 1 without.
    """

    charts: Sequence[Chart] = ()
    headline: Mapping[str, float] = {}
    memory: str = ""
    step_bytes: float | None = None
    micro_batch: tuple[Tensor, Tensor | int] | None = None
    max_new_tokens: int | None = None
    samples_at_hand: bool = False
    steps_per_rollout: int = 1

    def flops_per_token(self) -> float | None:
        """Floating-point operations of training on one token; None if unknown."""
        return None

    def mean_batch(self) -> float | None:
        """Tokens of an average training batch; None if unknown, or if rollouts are what a step reads."""
        return None

    def spent(self) -> Spent:
        """What rollouts have cost so far."""
        return Spent()

    def sample_texts(self) -> list[dict[str, Any]]:
        """Rows of a table of samples, all with the same keys, such as prompt, response and score. Called on every
        process."""
        return []

    def histograms(self) -> dict[str, Tensor]:
        """Distributions by their logged names. Called on every process."""
        return {}
