"""What a stage returns and declares: a loss of weighted terms, and the charts of its dashboard."""

from typing import NamedTuple

from torch import Tensor


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
