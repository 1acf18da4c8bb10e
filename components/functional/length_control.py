"""Win rates that do not count length: what they would be if both answers were equally long."""

import torch
from torch import Tensor

from components.functional.shapes import same_shape

STEPS = 200  # Newton steps, at most; 5 to 10 are usual
LARGEST_STEP = 2.0  # of any coefficient: farther ones can overshoot where the curve is flat
CLOSE = 1e-9  # converged if a step moves no coefficient farther


def logistic_regression(features: Tensor, outcomes: Tensor) -> Tensor:
    """(K,) float64: the coefficients b that maximize Σ log-likelihood of outcomes under σ(features·b) + ½ log |I|.

    The second term, Jeffreys' prior with the information matrix I, removes most of the bias of small samples and keeps
    coefficients finite where outcomes are separable, for instance if all are 1. Solved by Newton's method on
    Σ (y − p + h(½ − p))·x = 0, with h the diagonal of the hat matrix.
    features: (N, K). outcomes: (N,) in [0, 1], where a tie is ½. Raises ValueError if N differs or is 0.
    Source: Firth 1993; Heinze & Schemper 2002, section 2.
    """
    if features.dim() != 2 or outcomes.shape != features.shape[:1] or not len(outcomes):
        raise ValueError(
            f"logistic_regression: expected features (N, K) and outcomes (N,) with N of at least 1, got "
            f"{tuple(features.shape)} and {tuple(outcomes.shape)}"
        )
    x, y = features.double(), outcomes.double()
    coefficients = x.new_zeros(x.shape[1])
    for _ in range(STEPS):
        p = torch.sigmoid(x @ coefficients)
        weights = p * (1 - p)
        inverse = torch.linalg.pinv((x * weights[:, None]).T @ x, hermitian=True)
        hat = weights * ((x @ inverse) * x).sum(1)
        step = inverse @ (x.T @ (y - p + hat * (0.5 - p)))
        coefficients = coefficients + step.clamp(-LARGEST_STEP, LARGEST_STEP)
        if step.abs().max() < CLOSE:
            break
    return coefficients


def length_features(gaps: Tensor) -> Tensor:
    """(N, 2) float64: 1 and tanh(gap / standard deviation of the gaps); (N, 1), ones alone, if all gaps are equal.

    gaps: (N,), the length of an answer minus that of the other. Differences beyond a few deviations count alike.
    Source: Dubois et al. 2024 (length-controlled AlpacaEval), section 3.
    """
    ones = torch.ones(len(gaps), dtype=torch.float64)
    deviation = gaps.double().std(correction=0)
    if not deviation > 0:
        return ones[:, None]
    return torch.stack([ones, torch.tanh(gaps.double() / deviation)], dim=1)


def length_controlled_logit(credits: Tensor, gaps: Tensor) -> float:
    """logit q of the probability q to win against an answer of equal length, by the regression
    q(win) = σ(θ + φ·tanh(gap / std)): θ.

    credits: (N,), 1 for a win, ½ for a tie, 0 for a loss. gaps: (N,), see `length_features`. The published model also
    has a term for the difficulty of a prompt, estimated from many models' answers to it; with two it is left out.
    Raises ValueError if shapes differ.  Source: Dubois et al. 2024 (length-controlled AlpacaEval), section 3.
    """
    same_shape("length_controlled_logit", credits=credits, gaps=gaps)
    return float(logistic_regression(length_features(gaps), credits)[0])
