"""How good a reward model is on rankings: accuracy, calibration, and whether it merely prefers length."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from components.data.batches import PreferenceBatch, moved_to
from components.evaluation.measure.intervals import share_interval
from components.evaluation.measure.policy import numbers
from components.functional.losses import ranking_pairs
from components.functional.ranking import BINS, Pairs, pairs_of, ranking_metrics
from components.models.heads import ScalarModel


@torch.no_grad()
def evaluate_ranking(model: ScalarModel, batches: Iterable[PreferenceBatch]) -> dict[str, Any]:
    """Metrics over all pairs of answers to one prompt that differ in rank: those of functional.ranking, and

    accuracy_ci               95% interval: Wilson's, pairs of one prompt being dependent (intervals.share_interval)
    pairs, prompts            numbers of pairs and of different prompts
    pairs_length_matched      number of pairs behind accuracy_length_matched
    reliability               per bin {low, high, pairs, confidence, accuracy}: the last two None in an empty bin
    Raises ValueError if no two answers differ in rank, and for scores that are not numbers.
    """
    device = next(model.parameters()).device
    parts, keys, scores, lengths = [], [], [], []
    for batch in batches:
        here = moved_to(device, batch)
        score = numbers(model(here.input_ids, here.layout).flatten()[here.last])
        better, _, _ = ranking_pairs(here.ranks, here.groups)
        parts.append(pairs_of(score, here.lengths, here.ranks, here.groups))
        keys += [_prompt_of(batch, answer) for answer in better.tolist()]
        scores.append(score)
        lengths.append(here.lengths)
    if not keys:
        raise ValueError("reward evaluation: expected answers of different rank to one prompt, found none in any batch")
    pairs = Pairs(*(torch.cat(field).cpu() for field in zip(*parts, strict=True)))
    return ranking_metrics(pairs, torch.cat(scores).cpu(), torch.cat(lengths).cpu()) | {
        "accuracy_ci": share_interval(pairs.credit, keys),
        "pairs": len(keys),
        "prompts": len(set(keys)),
        "pairs_length_matched": int(pairs.matched.sum()),
        "reliability": reliability(pairs.confidence, pairs.credit),
    }


def reliability(confidence: Tensor, credit: Tensor) -> list[dict[str, Any]]:
    """Mean confidence and accuracy (credit) of the pairs in each bin of confidence; both tensors (P,)."""
    number = ((confidence - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    table = []
    for b in range(BINS):
        inside = number == b
        count = int(inside.sum())
        table.append(
            {
                "low": 0.5 + 0.5 * b / BINS,
                "high": 0.5 + 0.5 * (b + 1) / BINS,
                "pairs": count,
                "confidence": float(confidence[inside].mean()) if count else None,
                "accuracy": float(credit[inside].mean()) if count else None,
            }
        )
    return table


def _prompt_of(batch: PreferenceBatch, answer: int) -> tuple:
    """A key shared by answers to equal prompts: the ids of the segment that the answer continues."""
    row, column = divmod(int(batch.last[answer]), batch.input_ids.shape[1])
    parent = batch.layout.parents[row, column]
    return tuple(batch.input_ids[row][batch.layout.segments[row] == parent].tolist())
