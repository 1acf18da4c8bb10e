"""How good a reward model is on rankings: accuracy, calibration, and whether it merely likes length."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from components.data.batches import PreferenceBatch
from components.evaluation.intervals import share_interval
from components.functional.estimators import calibration_error, ranking_credit
from components.functional.losses import ranking_pairs
from components.models.heads import ScalarModel

LENGTH_MATCHED = 0.1  # two answers are of matched length when they differ by less than this share
BINS = 5  # of confidence, from ½ to 1: ten of [0, 1], of which the chosen side only reaches the upper half


@torch.no_grad()
def evaluate_ranking(model: ScalarModel, batches: Iterable[PreferenceBatch]) -> dict[str, Any]:
    """Figures over all pairs of answers to one prompt that differ in rank.

    accuracy                  share ranked rightly, ties count half
    accuracy_ci               95 % interval: Wilson's, pairs of one prompt being dependent (intervals.share_interval)
    pairs, prompts            what the figures rest on; prompts: different ones
    ece                       expected calibration error of σ(|margin|), bins of 0.1
    margin                    mean r_better − r_worse
    score_length_correlation  Pearson of score and tokens over answers; None where either never varies
    accuracy_length_matched   accuracy on pairs whose lengths differ by under 10 %, pairs_length_matched of them
    longer_wins               accuracy of "the longer answer wins", the baseline to beat
    reliability               per bin {low, high, pairs, confidence, accuracy}: the last two None in an empty bin
    Raises ValueError where no two answers differ in rank.
    """
    device = next(model.parameters()).device
    margins, gaps, longest, keys, scores, lengths = [], [], [], [], [], []
    for batch in batches:
        here = PreferenceBatch(*(_to(field, device) for field in batch))
        score = model(here.input_ids, here.layout).flatten()[here.last]
        better, worse, _ = ranking_pairs(here.ranks, here.groups)
        length = here.lengths.float()
        margins.append(score[better] - score[worse])
        gaps.append(length[better] - length[worse])
        longest.append(torch.maximum(length[better], length[worse]))
        keys += [_prompt_of(batch, answer) for answer in better.tolist()]
        scores.append(score)
        lengths.append(length)
    if not keys:
        raise ValueError("reward evaluation: expected answers of different rank to one prompt, found none in any batch")

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts).cpu()

    return _figures(joined(margins), joined(gaps), joined(longest), joined(scores), joined(lengths), keys)


def _figures(
    margins: Tensor, gaps: Tensor, longest: Tensor, scores: Tensor, lengths: Tensor, keys: list[tuple]
) -> dict[str, Any]:
    right, confidence = ranking_credit(margins), torch.sigmoid(margins.abs())
    matched = gaps.abs() < LENGTH_MATCHED * longest
    return {
        "accuracy": float(right.mean()),
        "accuracy_ci": share_interval(right, keys),
        "pairs": len(keys),
        "prompts": len(set(keys)),
        "ece": float(calibration_error(confidence, right, num_bins=BINS)),
        "margin": float(margins.mean()),
        "score_length_correlation": _pearson(scores, lengths),
        "accuracy_length_matched": float(right[matched].mean()) if matched.any() else None,
        "pairs_length_matched": int(matched.sum()),
        "longer_wins": float(ranking_credit(gaps).mean()),
        "reliability": reliability(confidence, right),
    }


def reliability(confidence: Tensor, right: Tensor) -> list[dict[str, Any]]:
    """Mean confidence and accuracy of the pairs in each bin of confidence; both tensors (P,)."""
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
                "accuracy": float(right[inside].mean()) if count else None,
            }
        )
    return table


def _prompt_of(batch: PreferenceBatch, answer: int) -> tuple:
    """A key that answers of equal prompts share: the ids of the segment that the answer continues."""
    row, column = divmod(int(batch.last[answer]), batch.input_ids.shape[1])
    parent = batch.layout.parents[row, column]
    return tuple(batch.input_ids[row][batch.layout.segments[row] == parent].tolist())


def _pearson(x: Tensor, y: Tensor) -> float | None:
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    scale = x.norm() * y.norm()
    return float(x @ y / scale) if scale > 0 else None


def _to(field: Any, device: torch.device) -> Any:
    """A batch's field, a tensor or a layout of tensors, on a device."""
    return field.to(device) if isinstance(field, Tensor) else type(field)(*(part.to(device) for part in field))
