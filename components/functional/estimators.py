"""Figures to plan and to judge by: known optima, unbiased estimates, accuracy and calibration."""

import math

import torch
from torch import Tensor

from components.functional.shapes import at_least_float32, same_shape


def best_of_n_kl(n: int) -> float:
    """KL of the best of n samples from the policy, in nats: ln n − (n−1)/n; exact if scores never tie.

    Raises ValueError if n < 1.  Source: Stiennon et al. 2020, appendix G.3.
    """
    if n < 1:
        raise ValueError(f"best_of_n_kl: expected n of at least 1, got {n}")
    return math.log(n) - (n - 1) / n


def best_of_n_mean(rewards: Tensor, n: int) -> Tensor:
    """Unbiased estimate of E[best of n] from N >= n samples: Σ_i C(i−1, n−1)/C(N, n) r_(i), r sorted.

    rewards: (..., N). Returns (...), in the unit of the rewards.  Raises ValueError unless 1 <= n <= N.
    Source: Nakano et al. 2021 (WebGPT), appendix I.
    """
    samples = rewards.shape[-1]
    if not 1 <= n <= samples:
        raise ValueError(f"best_of_n_mean: expected n between 1 and the {samples} samples, got {n}")
    rewards = at_least_float32(rewards)
    weights = [math.comb(i, n - 1) / math.comb(samples, n) for i in range(samples)]
    return rewards.sort(dim=-1).values @ rewards.new_tensor(weights)


def majority_credit(answers: Tensor, correct: Tensor) -> Tensor:
    """Probability that a majority vote over k answers is right, ties broken by a fair draw among the leaders.

    answers: (B, k) int64, equal numbers for equal answers. correct: (B,) int64. Returns (B,) in [0, 1].
    Raises ValueError if shapes do not fit.  Source: Wang et al. 2023 (self-consistency), section 2.
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
    right = (leading & (answers == correct[:, None])).any(dim=1)
    return right / num_leaders


def ranking_credit(margins: Tensor) -> Tensor:
    """What each ranked pair counts: 1 for a margin r_better − r_worse above 0, ½ for a tie, 0 below.

    margins: any shape, also the result's, in at least float32.
    """
    margins = at_least_float32(margins)
    return ((margins > 0).to(margins.dtype) + (margins >= 0).to(margins.dtype)) / 2


def ranking_accuracy(better: Tensor, worse: Tensor) -> Tensor:
    """Share of pairs scored in the right order, a tie counting ½; 0 without pairs.

    better, worse: (P,) scores. Returns a scalar in [0, 1].  Raises ValueError if shapes differ.
    """
    same_shape("ranking_accuracy", better=better, worse=worse)
    credit = ranking_credit(at_least_float32(better) - at_least_float32(worse))
    return credit.sum() / max(credit.numel(), 1)


def calibration_error(confidence: Tensor, correct: Tensor, *, num_bins: int) -> Tensor:
    """Expected calibration error of two-way choices: Σ_b (n_b/n)·|accuracy_b − mean confidence_b|.

    Equal bins from ½ to 1, for the confidence in the chosen side is never below ½.
    confidence: (P,) in [½, 1]. correct: (P,) bool. Returns a scalar in [0, 1]; 0 without pairs.
    Raises ValueError if shapes differ, or for a confidence outside [½, 1].  Source: Guo et al. 2017, eq. 3.
    """
    same_shape("calibration_error", confidence=confidence, correct=correct)
    confidence = at_least_float32(confidence)
    if ((confidence < 0.5) | (confidence > 1)).any():
        raise ValueError("calibration_error: expected each confidence in [0.5, 1], that of the chosen side")
    bins = ((confidence - 0.5) * 2 * num_bins).long().clamp(max=num_bins - 1)
    gaps = confidence.new_zeros(num_bins).index_add(0, bins, correct.to(confidence.dtype) - confidence)
    return gaps.abs().sum() / max(confidence.numel(), 1)


def chinchilla_optimal(flops: float) -> tuple[float, float]:
    """(parameters, tokens) of a compute-optimal run: N = √(C/120), D = 20·N, for then C = 6·N·D.

    flops: training compute C, in floating-point operations. Raises ValueError unless it is above 0.
    Source: Hoffmann et al. 2022, table 3 (the 20x rule; the parametric fit printed there contradicts it).
    """
    if flops <= 0:
        raise ValueError(f"chinchilla_optimal: expected flops above 0, got {flops}")
    parameters = math.sqrt(flops / 120)
    return parameters, 20 * parameters


def kl_regularised_optimum(reference_probs: Tensor, rewards: Tensor, *, beta: float) -> tuple[Tensor, Tensor]:
    """The policy π* ∝ ref·exp(r/beta) that maximises E[r] − beta·KL(π‖ref), and that maximum beta·ln Z.

    reference_probs, rewards: (..., V), beta in the unit of the rewards. Returns ((..., V), (...)).
    Raises ValueError if shapes differ or beta <= 0.  Source: Rafailov et al. 2023 (DPO), eq. 4.
    """
    same_shape("kl_regularised_optimum", reference_probs=reference_probs, rewards=rewards)
    if beta <= 0:
        raise ValueError(f"kl_regularised_optimum: expected beta above 0, got {beta}")
    weights = at_least_float32(reference_probs).log() + at_least_float32(rewards) / beta
    return weights.softmax(dim=-1), beta * torch.logsumexp(weights, dim=-1)
