"""How good a reward model is on rankings: accuracy, calibration, and whether it merely prefers length."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from components.data.batches import PreferenceBatch, moved_to
from components.evaluation.measure.intervals import mean_interval, share_interval
from components.evaluation.measure.policy import numbers
from components.functional.ranking import BINS, Pairs, RankingMetrics, pairs_of, ranking_metrics
from components.models.heads import ScalarModel


class Bin(NamedTuple):
    """Pairs whose confidence is from low to high: their number, mean confidence and accuracy, both None without any."""

    low: float
    high: float
    pairs: int
    confidence: float | None
    accuracy: float | None


class RankingResult(NamedTuple):
    """A reward model on rankings: over all pairs of answers to one prompt that differ in rank, and over all answers.

    shares                those of functional.ranking
    accuracy_ci, longer_wins_ci, accuracy_length_matched_ci
                          95% intervals: Wilson's, pairs of one prompt being dependent (intervals.share_interval)
    over_longer           by how much accuracy exceeds that of "the longer answer wins"
    over_longer_ci        95% interval, from the differences pair by pair (intervals.mean_interval)
    pairs, prompts        numbers of pairs and of different prompts
    pairs_length_matched  number of pairs behind shares.accuracy_length_matched
    reliability           the pairs by confidence
    scores                (A,) on the CPU, of every answer in the order of the batches
    """

    shares: RankingMetrics
    accuracy_ci: list[float]
    longer_wins_ci: list[float]
    accuracy_length_matched_ci: list[float] | None
    over_longer: float
    over_longer_ci: list[float] | None
    pairs: int
    prompts: int
    pairs_length_matched: int
    reliability: list[Bin]
    scores: Tensor

    def metrics(self) -> dict[str, Any]:
        """The numbers by name, as plain data for a report: all but the scores."""
        own = {name: value for name, value in self._asdict().items() if name not in ("shares", "scores")}
        return {**self.shares._asdict(), **own, "reliability": [part._asdict() for part in self.reliability]}


@torch.no_grad()
def evaluate_ranking(model: ScalarModel, batches: Iterable[PreferenceBatch]) -> RankingResult:
    """Reads all answers and compares those to one prompt.

    Raises ValueError if no two answers differ in rank, and for scores that are not numbers.
    """
    parts, keys, scores, lengths = [], [], [], []
    device = next(model.parameters()).device
    for batch in batches:
        here = moved_to(device, batch)
        score = answer_scores(model, here)
        parts.append(pairs_of(score, here.lengths, here.finished, here.pairs))
        keys += [_prompt_of(batch, answer) for answer in batch.pairs.better.tolist()]
        scores.append(score)
        lengths.append(batch.lengths)
    if not keys:
        raise ValueError("reward evaluation: expected answers of different rank to one prompt, found none in any batch")
    pairs = Pairs(*(torch.cat(field).cpu() for field in zip(*parts, strict=True)))
    given = torch.cat(scores).cpu()
    matched = pairs.matched
    keys_matched = [key for key, is_matched in zip(keys, matched.tolist(), strict=True) if is_matched]
    over = pairs.credit - pairs.longer_wins
    return RankingResult(
        shares=ranking_metrics(pairs, given, torch.cat(lengths).cpu()),
        accuracy_ci=share_interval(pairs.credit, keys),
        longer_wins_ci=share_interval(pairs.longer_wins, keys),
        accuracy_length_matched_ci=share_interval(pairs.credit[matched], keys_matched) if keys_matched else None,
        over_longer=float(over.double().mean()),
        over_longer_ci=mean_interval(over, keys),
        pairs=len(keys),
        prompts=len(set(keys)),
        pairs_length_matched=len(keys_matched),
        reliability=reliability(pairs.confidence, pairs.credit),
        scores=given,
    )


def answer_scores(model: ScalarModel, batch: PreferenceBatch) -> Tensor:
    """(N,) on the model's device: the score at the last token of every answer. Raises ValueError if one is not a
    number."""
    here = moved_to(next(model.parameters()).device, batch)
    return numbers(model(here.input_ids, here.layout).flatten()[here.last])


def reliability(confidence: Tensor, credit: Tensor) -> list[Bin]:
    """The pairs in each bin of confidence, and their accuracy (mean credit); both tensors (P,)."""
    number = ((confidence - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    table = []
    for b in range(BINS):
        inside = number == b
        count = int(inside.sum())
        table.append(
            Bin(
                low=0.5 + 0.5 * b / BINS,
                high=0.5 + 0.5 * (b + 1) / BINS,
                pairs=count,
                confidence=float(confidence[inside].mean()) if count else None,
                accuracy=float(credit[inside].mean()) if count else None,
            )
        )
    return table


def _prompt_of(batch: PreferenceBatch, answer: int) -> tuple:
    """A key shared by answers to equal prompts: the ids of the segment that the answer continues."""
    row, column = divmod(int(batch.last[answer]), batch.input_ids.shape[1])
    parent = batch.layout.parents[row, column]
    return tuple(batch.input_ids[row][batch.layout.segments[row] == parent].tolist())
