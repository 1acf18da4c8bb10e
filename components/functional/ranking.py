"""How well scores rank answers, over pairs of answers to the same prompt that differ in rank."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional import pearson_corrcoef

from components.functional.estimators import calibration_error, ranking_credit
from components.functional.losses import RankedPairs
from components.functional.shapes import at_least_float32

LENGTH_MATCHED = 0.1  # two answers have matched lengths if they differ by less than this share of the longer
BINS = 5  # of confidence, from ½ to 1: the upper half of ten bins of [0, 1], since the chosen side is never below ½


class Pairs(NamedTuple):
    """Per pair (P,): margins r_better − r_worse; gaps, length_better − length_worse, and longest, the longer length, in
    tokens; whole, bool, whether neither answer was cut, so that both lengths are known."""

    margins: Tensor
    gaps: Tensor
    longest: Tensor
    whole: Tensor

    @property
    def credit(self) -> Tensor:
        """(P,): 1 for a pair scored in the order of its ranks, ½ for a tie, 0 otherwise."""
        return ranking_credit(self.margins)

    @property
    def confidence(self) -> Tensor:
        """(P,): σ(|margin|), the confidence in the chosen side."""
        return torch.sigmoid(self.margins.abs())

    @property
    def matched(self) -> Tensor:
        """(P,) bool: True on pairs of matched length."""
        return self.whole & (self.gaps.abs() < LENGTH_MATCHED * self.longest)

    @property
    def longer_wins(self) -> Tensor:
        """(P,): the credit of the rule "the longer answer wins"."""
        return ranking_credit(self.gaps)


def pairs_of(scores: Tensor, lengths: Tensor, finished: Tensor, pairs: RankedPairs) -> Pairs:
    """The pairs of a batch of answers. All (N,): scores, lengths in tokens, finished, False for an answer that was cut,
    whose length counts as one token more; pairs as ranking_pairs finds them."""
    better, worse = pairs.better, pairs.worse
    scores, lengths = at_least_float32(scores), lengths.float() + ~finished
    longest = torch.maximum(lengths[better], lengths[worse])
    whole = finished[better] & finished[worse]
    return Pairs(scores[better] - scores[worse], lengths[better] - lengths[worse], longest, whole)


class RankingMetrics(NamedTuple):
    """Metrics of a reward model over pairs and answers; the only definition of them.

    accuracy                  share of pairs ranked correctly, ties count half
    margin                    mean r_better − r_worse over pairs
    ece                       expected calibration error of σ(|margin|), bins of 0.1
    score_length_correlation  Pearson correlation of score and tokens over answers; None if either is constant
    accuracy_length_matched   the same on pairs of whole answers whose lengths differ by less than 10%; None without any
    longer_wins               accuracy of "the longer answer wins", the baseline to beat
    """

    accuracy: float
    margin: float
    ece: float
    score_length_correlation: float | None
    accuracy_length_matched: float | None
    longer_wins: float


def ranking_metrics(pairs: Pairs, scores: Tensor, lengths: Tensor) -> RankingMetrics:
    """The metrics of pairs (at least one), and of answers with these scores and lengths in tokens, each (N,)."""
    credit, matched = pairs.credit, pairs.matched
    return RankingMetrics(
        accuracy=float(credit.mean()),
        margin=float(pairs.margins.mean()),
        ece=float(calibration_error(pairs.confidence, credit, num_bins=BINS)),
        score_length_correlation=_pearson(scores, lengths),
        accuracy_length_matched=float(credit[matched].mean()) if matched.any() else None,
        longer_wins=float(pairs.longer_wins.mean()),
    )


def _pearson(x: Tensor, y: Tensor) -> float | None:
    varies = len(x) > 1 and bool((x != x[0]).any() and (y != y[0]).any())
    return float(pearson_corrcoef(x.double(), y.double())) if varies else None
