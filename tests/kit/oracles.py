"""Exact answers in closed form that losses, estimators and studies are compared with."""

import torch
from torch import Tensor

from components.functional.shapes import at_least_float32


def exact_kl(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """KL(p‖q) = Σ p (log p − log q) summed over the whole vocabulary; a token with p = 0 adds 0.

    logits_p, logits_q: (..., V). Returns (...) nats, >= 0.
    """
    logp = at_least_float32(logits_p).log_softmax(dim=-1)
    logq = at_least_float32(logits_q).log_softmax(dim=-1)
    return (logp.exp() * torch.where(logp == -torch.inf, 0.0, logp - logq)).sum(dim=-1)


def kl_regularized_optimum(reference_probs: Tensor, rewards: Tensor, *, beta: float) -> tuple[Tensor, Tensor]:
    """The policy π* ∝ ref·exp(r/beta) that maximizes E[r] − beta·KL(π‖ref), and that maximum beta·ln Z.

    reference_probs, rewards: (..., V), beta in the unit of the rewards. Returns ((..., V), (...)).
    Source: Rafailov et al. 2023 (DPO), eq. 4.
    """
    weights = at_least_float32(reference_probs).log() + at_least_float32(rewards) / beta
    return weights.softmax(dim=-1), beta * torch.logsumexp(weights, dim=-1)
