"""Divergences between two next-token distributions over the whole vocabulary, in nats, and their gradients."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["forward", "reverse", "jsd"]


class Divergences(NamedTuple):
    """At each of N tokens, in nats: forward KL(teacher‖student), reverse KL(student‖teacher), entropy of the student,
    and loss, the divergence of the requested kind; each (N,). slope: (N, V), the gradient of loss with respect to the
    student's logits."""

    forward: Tensor
    reverse: Tensor
    entropy: Tensor
    loss: Tensor
    slope: Tensor


def divergences(student: Tensor, teacher: Tensor, *, kind: Kind, beta: float) -> Divergences:
    """Divergences of the teacher τ and the student π at each token, with m = βτ + (1−β)π:

    forward  Σ τ log τ/π                            covers all that the teacher does
    reverse  Σ π log π/τ                            avoids what the teacher does not do
    jsd      β Σ τ log τ/m + (1−β) Σ π log π/m      JSD/β → forward as β → 0, JSD/(1−β) → reverse as β → 1

    student, teacher: (N, V) log-probabilities; −inf is an id that is impossible, and 0 · log 0 = 0. beta: used by jsd
    alone, between 0 and 1. A KL is infinite if its first distribution has an id that is impossible in its second.
    Raises ValueError if shapes differ, the kind is unknown, or beta is not between 0 and 1.
    Source: Agarwal et al. 2024 (GKD), section 2 and eq. 1.
    """
    if student.shape != teacher.shape or student.dim() != 2:
        raise ValueError(
            f"divergences: expected student and teacher (N, V), got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    check_kind(kind, beta)
    p, q, ahead = student.exp(), teacher.exp(), student - teacher
    forward, reverse, entropy = -_mean(q, ahead), _mean(p, ahead), -_mean(p, student)
    if kind == "forward":
        return Divergences(forward, reverse, entropy, forward, p - q)
    if kind == "reverse":
        return Divergences(forward, reverse, entropy, reverse, _slope(p, ahead, reverse))
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    to_mixture = _mean(p, student - mixture)
    loss = beta * _mean(q, teacher - mixture) + (1 - beta) * to_mixture
    slope = _slope(p, student - mixture, to_mixture).mul_(1 - beta)
    return Divergences(forward, reverse, entropy, loss, slope)


def check_kind(kind: str, beta: float) -> None:
    """Raises ValueError if the kind is unknown, or beta not between 0 and 1."""
    if kind not in ("forward", "reverse", "jsd"):
        raise ValueError(f"divergence: expected forward, reverse or jsd, got {kind!r}")
    if not 0 < beta < 1:
        raise ValueError(
            f"divergence: expected beta between 0 and 1, got {beta}; at its limits are forward and reverse"
        )


def _mean(probs: Tensor, values: Tensor) -> Tensor:
    """(N,) Σ p·x, in which an id of probability 0 counts 0 even if its x is infinite."""
    return torch.where(probs == 0, 0.0, probs * values).sum(1)


def _slope(p: Tensor, values: Tensor, mean: Tensor) -> Tensor:
    """Through the softmax: a derivative x with respect to p, up to a constant, is p·(x − Σ p·x) with respect to the
    logits."""
    return torch.where(p == 0, 0.0, p * (values - mean[:, None]))
