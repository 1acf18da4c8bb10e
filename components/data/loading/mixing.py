"""Mixtures of sources, with weights as shares of tokens."""

from typing import NamedTuple

import numpy as np

from components.functional.seeding import numpy_seeded


class Share(NamedTuple):
    """A source's part of a mixture: shares of tokens, 0 to 1; epochs: passes over its records."""

    configured: float
    realized: float
    epochs: float


def mix(lengths: list[np.ndarray], weights: list[float], *, seed: int) -> tuple[np.ndarray, list[Share]]:
    """Samples records of several sources in proportion to their weights, in tokens.

    lengths[s] (N_s,): tokens of each record of source s. Returns ((M, 2) [source, record], shuffled; shares).
    A pass over the mixture has the same number of tokens as all sources together: each source is repeated in full as
    many times as fit its share, and the rest is sampled by seed without replacement. Off by at most half a record per
    source. Raises ValueError if a source has no tokens or a weight is not positive.
    """
    for s, (length, weight) in enumerate(zip(lengths, weights, strict=True)):
        if not length.sum() or not weight > 0:
            got = f"{length.sum()} tokens, weight {weight}"
            raise ValueError(f"mixture[{s}]: expected tokens and a positive weight, got {got}")
    total = sum(int(length.sum()) for length in lengths)
    rng = numpy_seeded(seed, 0x6D6978)
    taken = []
    for length, weight in zip(lengths, weights, strict=True):
        target = total * weight / sum(weights)
        whole, rest = divmod(target, int(length.sum()))
        order = rng.permutation(len(length))
        ends = np.cumsum(length[order])
        part = int(np.searchsorted(ends - length[order] / 2, rest))  # the number of records whose sum is nearest
        taken.append(np.concatenate([np.tile(np.arange(len(length)), int(whole)), order[:part]]))
    tokens = [int(length[records].sum()) for length, records in zip(lengths, taken, strict=True)]
    shares = [
        Share(weight / sum(weights), count / sum(tokens), count / int(length.sum()))
        for length, weight, count in zip(lengths, weights, tokens, strict=True)
    ]
    pairs = np.concatenate([np.stack([np.full_like(r, s), r], axis=1) for s, r in enumerate(taken)])
    return pairs[rng.permutation(len(pairs))], shares
