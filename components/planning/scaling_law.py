"""A scaling law fitted to runs, its intervals, and what it predicts of a larger run."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from components.planning.compute_optimal import Law

FEWEST = 6  # runs: one more than the law has constants
DELTA = 1e-3  # of the Huber loss, Hoffmann et al. 2022, section D.2
EXPONENTS = np.geomspace(0.05, 3.0, 24)  # first guesses of alpha and beta
STARTS = 6  # the best of them, which are polished
STEPS = 300  # of polishing
COVERED = 0.9  # of the intervals


class Run(NamedTuple):
    """A run that read `tokens` once with `parameters`, and its loss on held-out text, nats per token."""

    parameters: float
    tokens: float
    loss: float


class Fit(NamedTuple):
    """law: fitted to the runs. resampled: laws of data sets like theirs. error: root mean square of log(loss) −
    log(law), per run."""

    law: Law
    resampled: tuple[Law, ...]
    error: float

    def interval(self, of: str) -> tuple[float, float]:
        """In which a constant of the law lies, in 90% of the resampled laws."""
        return _middle([getattr(law, of) for law in self.resampled])

    def predicted(self, parameters: float, tokens: float) -> tuple[float, float, float]:
        """The loss of a run, and its interval by the resampled laws; its own noise is not in it."""
        losses = [law.loss(parameters, tokens) for law in self.resampled]
        return self.law.loss(parameters, tokens), *_middle(losses)


def fit(runs: Sequence[Run], *, resamples: int, seed: int) -> Fit:
    """The law loss = E + A/N^alpha + B/D^beta that comes closest to the runs, all constants above 0.

    Closest: least sum of the Huber losses of log(law) − log(loss).  Source: Hoffmann et al. 2022, approach 3, eq. 3.
    Intervals: residuals of log(loss) are drawn again, with replacement, and enlarged by √(n/(n−5)), since five
    constants were fitted to the n runs; each such data set gets a law of its own.
    Raises ValueError for fewer than 6 runs, for runs of fewer than two sizes or token counts, and for a number that is
    not above 0.
    """
    _check(runs)
    measured = np.log(np.array(runs, dtype=np.float64))
    sizes, losses = measured[:, :2], measured[:, 2]
    constants, missed = _polished(sizes, np.tile(losses, (STARTS, 1)), np.log(_starts(np.exp(measured))))
    best = constants[missed.argmin()]
    residuals = losses - _logs(sizes, best[None])[0][0]
    enlarged = residuals * math.sqrt(len(runs) / (len(runs) - 5))
    drawn = np.random.default_rng(seed).choice(enlarged, (resamples, len(runs)))
    again, _ = _polished(sizes, losses - residuals + drawn, np.tile(best, (resamples, 1)))
    error = float(np.sqrt(np.mean(residuals**2)))
    return Fit(_law(best), tuple(map(_law, again)), error)


def _check(runs: Sequence[Run]) -> None:
    if len(runs) < FEWEST:
        raise ValueError(f"a scaling law has five constants: expected at least {FEWEST} runs to fit, got {len(runs)}")
    for name in ("parameters", "tokens"):
        if len({getattr(run, name) for run in runs}) < 2:
            raise ValueError(f"expected runs with different {name}, got {getattr(runs[0], name):,} for all of them")
    for run in runs:
        if not all(math.isfinite(value) and value > 0 for value in run):
            raise ValueError(f"expected parameters, tokens and a loss above 0, got {tuple(run)}")


def _law(logs: np.ndarray) -> Law:
    return Law(*(float(value) for value in np.exp(logs)))


def _starts(measured: np.ndarray) -> np.ndarray:
    """(STARTS, 5): for pairs of exponents, E, A and B by least squares of relative errors; the best of all pairs.

    measured: (n, 3), of runs.
    """
    parameters, tokens, losses = measured.T
    found: list[tuple[float, list[float]]] = []
    for alpha in EXPONENTS:
        for beta in EXPONENTS:
            columns = np.stack([np.ones_like(losses), parameters**-alpha, tokens**-beta], axis=1) / losses[:, None]
            scale = np.linalg.norm(columns, axis=0)
            constants, *_ = np.linalg.lstsq(columns / scale, np.ones_like(losses), rcond=None)
            constants = np.maximum(constants, 1e-6) / scale  # all are above 0 in logarithms
            found.append((float(np.sum((columns @ constants - 1) ** 2)), [*constants, alpha, beta]))
    return np.array([start for _, start in sorted(found)[:STARTS]])


def _polished(sizes: np.ndarray, losses: np.ndarray, logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K, 5): laws by damped Gauss–Newton steps, in logarithms, since constants are above 0; (K,): their Huber losses.

    sizes: (n, 2), log(parameters) and log(tokens). losses: (K, n), log(loss) of K data sets. logs: (K, 5), the starts.
    """
    damping, missed = np.full(len(logs), 1e-2), _huber(_logs(sizes, logs)[0] - losses)
    for _ in range(STEPS):
        values, slopes = _logs(sizes, logs)
        error = values - losses
        weighted = slopes / np.maximum(np.abs(error) / DELTA, 1.0)[..., None]  # the Huber loss, as weighted squares
        curvature = weighted.transpose(0, 2, 1) @ slopes
        diagonal = np.einsum("kii->ki", curvature) * damping[:, None] + 1e-12
        gradient = (weighted * error[..., None]).sum(1)
        step = np.linalg.solve(curvature + diagonal[..., None] * np.eye(5), gradient[..., None])[..., 0]
        tried = logs - np.clip(step, -1.0, 1.0)
        missed_then = _huber(_logs(sizes, tried)[0] - losses)
        better = missed_then < missed
        logs, missed = np.where(better[:, None], tried, logs), np.where(better, missed_then, missed)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-9, 1e9)
    return logs, missed


def _logs(sizes: np.ndarray, logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K, n): log of the laws' losses; (K, n, 5): its derivatives by the logs of the constants."""
    exponents = np.exp(logs[:, None, 3:])
    by_size = logs[:, None, 1:3] - exponents * sizes
    terms = np.concatenate([np.broadcast_to(logs[:, None, :1], (*by_size.shape[:2], 1)), by_size], axis=2)
    highest = terms.max(2, keepdims=True)
    shares = np.exp(terms - highest)
    total = shares.sum(2, keepdims=True)
    shares /= total
    slopes = np.concatenate([shares, -shares[..., 1:] * exponents * sizes], axis=2)
    return (np.log(total) + highest)[..., 0], slopes


def _huber(error: np.ndarray) -> np.ndarray:
    size = np.abs(error)
    return np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum(1)


def _middle(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return float(low), float(high)
