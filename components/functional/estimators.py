"""Statistics for planning and evaluation: KL of best-of-n, pass@k, majority vote, ranking accuracy, calibration."""

import math

import torch
from torch import Tensor

from components.functional.shapes import at_least_float32, same_shape


def best_of_n_kl(n: int) -> float:
    """KL of the best of n samples to the policy, in nats: ln n − (n−1)/n; exact if scores never tie.

    Raises ValueError if n < 1.  Source: Stiennon et al. 2020, appendix G.3.
    """
    if n < 1:
        raise ValueError(f"best_of_n_kl: expected n of at least 1, got {n}")
    return math.log(n) - (n - 1) / n


def pass_at_k(correct: Tensor, samples: int, *, k: int) -> Tensor:
    """Probability that at least one of k samples is correct, estimated without bias from `samples` of each problem.

    1 − C(samples − correct, k) / C(samples, k). correct: (P,), how many of the samples are. Returns (P,) float64.
    Raises ValueError unless 1 ≤ k ≤ samples.  Source: Chen et al. 2021 (Codex), eq. 1.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass_at_k: expected k from 1 to {samples}, the samples, got {k}")
    wrong = samples - correct.double()
    factors = [((wrong - i) / (samples - i)).clamp_min(0) for i in range(k)]
    return 1 - torch.stack(factors).prod(0)


def majority_credit(answers: Tensor, correct: Tensor) -> Tensor:
    """Probability that a majority vote over k answers is correct, ties broken uniformly at random among the leaders.

    answers: (B, k) int64, equal numbers for equal answers. correct: (B,) int64. Returns (B,) in [0, 1].
    Raises ValueError if shapes do not match.  Source: Wang et al. 2023 (self-consistency), section 2.
    """
    if answers.dim() != 2 or correct.shape != answers.shape[:1]:
        raise ValueError(
            f"majority_credit: expected answers (B, k) and correct (B,), got {tuple(answers.shape)} and "
            f"{tuple(correct.shape)}"
        )
    votes = (answers[:, :, None] == answers[:, None, :]).sum(dim=2)
    most = votes.amax(dim=1)
    leading = votes == most[:, None]
    num_leaders = leading.sum(dim=1) / most
    correct_leads = (leading & (answers == correct[:, None])).any(dim=1)
    return correct_leads / num_leaders


def ranking_credit(margins: Tensor) -> Tensor:
    """What each ranked pair adds to accuracy: 1 for a margin r_better − r_worse above 0, ½ for a tie, 0 below.

    margins: any shape. Returns the same shape, in at least float32.
    """
    margins = at_least_float32(margins)
    return ((margins > 0).to(margins.dtype) + (margins >= 0).to(margins.dtype)) / 2


def calibration_error(confidence: Tensor, correct: Tensor, *, num_bins: int) -> Tensor:
    """Expected calibration error of two-way choices: Σ_b (n_b/n)·|accuracy_b − mean confidence_b|.

    Bins of equal width from ½ to 1, since the confidence in the chosen side is never below ½.
    confidence: (P,) in [½, 1]. correct: (P,) bool, or float credit in [0, 1]. Returns a scalar in [0, 1]; 0 if P = 0.
    Raises ValueError if shapes differ, or for a confidence outside [½, 1].  Source: Guo et al. 2017, eq. 3.
    """
    same_shape("calibration_error", confidence=confidence, correct=correct)
    confidence = at_least_float32(confidence)
    if ((confidence < 0.5) | (confidence > 1)).any():
        raise ValueError("calibration_error: expected each confidence in [0.5, 1], the confidence in the chosen side")
    bins = ((confidence - 0.5) * 2 * num_bins).long().clamp(max=num_bins - 1)
    gaps = confidence.new_zeros(num_bins).index_add(0, bins, correct.to(confidence.dtype) - confidence)
    return gaps.abs().sum() / max(confidence.numel(), 1)
