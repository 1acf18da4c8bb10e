"""What a stage returns and declares: a loss of weighted terms, and the charts of its dashboard."""

from typing import NamedTuple

from torch import Tensor


class Term(NamedTuple):
    """A part of a loss: a mean, times its coefficient, and what it is the mean of: so many tokens, pairs or prompts.

    step_weight: that weight in all micro-batches of the optimizer step, of this process, where the batch knows it.
    """

    mean: Tensor
    weight: Tensor | int
    step_weight: Tensor | None = None


class LossOutput(NamedTuple):
    """terms: the loss is their sum. metrics: detached scalars, means over as much as the first term.

    weights: of those metrics that are means over something else. A metric whose name ends in _max is a maximum.
    """

    terms: tuple[Term, ...]
    metrics: dict[str, Tensor]
    weights: dict[str, Tensor | int] = {}

    @property
    def loss(self) -> Tensor:
        return sum((term.mean for term in self.terms[1:]), self.terms[0].mean)

    @property
    def weight(self) -> Tensor | int:
        """Of the first term."""
        return self.terms[0].weight


class Chart(NamedTuple):
    """One chart of a stage's dashboard: metrics by their logged names, and the healthy range of one that has any."""

    title: str
    tags: tuple[str, ...]
    low: float | None = None
    high: float | None = None
