"""Mixtures of sources by weight, weights being shares of tokens."""

from typing import NamedTuple

import numpy as np


class Share(NamedTuple):
    """How much of a mixture one source makes up: shares of tokens, 0..1; epochs: passes over its records."""

    configured: float
    realised: float
    epochs: float


def mix(lengths: list[np.ndarray], weights: list[float], *, seed: int) -> tuple[np.ndarray, list[Share]]:
    """Draws records of several sources so that each source makes up its weight in tokens.

    lengths[s] (N_s,): tokens of each record of source s. Returns ((M, 2) [source, record], shuffled; shares).
    A pass over the mixture is as long as all sources together, in tokens: a source is taken whole as often as
    that asks, and then in part, its records drawn by seed without replacement. Off by at most half a record a
    source. Raises ValueError when a source has no tokens or a weight is not positive.
    """
    for s, (length, weight) in enumerate(zip(lengths, weights, strict=True)):
        if not length.sum() or not weight > 0:
            got = f"{length.sum()} tokens, weight {weight}"
            raise ValueError(f"mixture[{s}]: expected tokens and a positive weight, got {got}")
    total = sum(int(length.sum()) for length in lengths)
    rng = np.random.default_rng([seed, 0x6D6978])
    taken = []
    for length, weight in zip(lengths, weights, strict=True):
        target = total * weight / sum(weights)
        whole, rest = divmod(target, int(length.sum()))
        order = rng.permutation(len(length))
        ends = np.cumsum(length[order])
        part = int(np.searchsorted(ends - length[order] / 2, rest))  # the sum of so many is nearest
        taken.append(np.concatenate([np.tile(np.arange(len(length)), int(whole)), order[:part]]))
    tokens = [int(length[records].sum()) for length, records in zip(lengths, taken, strict=True)]
    shares = [
        Share(weight / sum(weights), count / sum(tokens), count / int(length.sum()))
        for length, weight, count in zip(lengths, weights, tokens, strict=True)
    ]
    pairs = np.concatenate([np.stack([np.full_like(r, s), r], axis=1) for s, r in enumerate(taken)])
    return pairs[rng.permutation(len(pairs))], shares
