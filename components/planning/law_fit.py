"""A scaling law fitted to runs, its intervals, and what it predicts of a larger run."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from components.planning.compute_optimal import Law

FEWEST = 6  # runs: one more than the law has constants
DISTINCT = 3  # sizes, and numbers of tokens: each decides two constants and a share of E
DETERMINED = 1e5  # condition number of the law's derivatives, scaled, above which runs do not decide the constants
DELTA = 1e-2  # of the Huber loss; Hoffmann et al. 2022, section D.2, have 1e-3 for errors that are smaller
RESAMPLES = 20  # the fewest from which a 90% interval can be read
EXPONENTS = np.geomspace(0.05, 3.0, 24)  # first guesses of alpha and beta
STARTS = 6  # the best of them, which are refined
STEPS = 100  # of refining
COVERED = 0.9  # of the intervals


class Run(NamedTuple):
    """A run that read `tokens` once with `parameters`, and its loss on held-out text, nats per token."""

    parameters: float
    tokens: float
    loss: float


class Fit(NamedTuple):
    """law: fitted to the runs. resampled: laws fitted to resampled data sets. noise: of log(loss) in a new run, one for
    each of these laws. error: root mean square of log(loss) − log(law) over the runs."""

    law: Law
    resampled: tuple[Law, ...]
    noise: tuple[float, ...]
    error: float

    def interval(self, of: str) -> tuple[float, float]:
        """The interval in which a constant of the law lies in 90% of the resampled laws; of: its name."""
        return _middle([getattr(law, of) for law in self.resampled])

    def predicted(self, parameters: float, tokens: float) -> tuple[float, float, float]:
        """The loss of another run by the law, and its 90% interval, the noise of a run included."""
        drawn = zip(self.resampled, self.noise, strict=True)
        losses = [law.loss(parameters, tokens) * math.exp(noise) for law, noise in drawn]
        return self.law.loss(parameters, tokens), *_middle(losses)


def fit(runs: Sequence[Run], *, resamples: int, seed: int) -> Fit:
    """The law loss = E + A/N^alpha + B/D^beta that comes closest to the runs, all constants above 0.

    Closest: least sum of the Huber losses of log(law) − log(loss).  Source: Hoffmann et al. 2022, approach 3, eq. 3.
    Intervals: centered residuals of log(loss) are sampled with replacement and added to the law; each such data set
    gets a law of its own. Residuals are enlarged by √(n/(n−5)), since five constants were fitted to the n runs, and in
    each data set by √(ν/χ²) with ν = n−5, since their size is uncertain as well (as in Student's t).
    Raises ValueError for fewer than 6 runs or 20 resamples, for fewer than three sizes or numbers of tokens, for runs
    that do not decide the constants, and for a number that is not above 0.
    """
    _check(runs, resamples)
    measured = np.log(np.array(runs, dtype=np.float64))
    sizes, losses = measured[:, :2], measured[:, 2]
    constants, objectives = _refined(sizes, np.tile(losses, (STARTS, 1)), np.log(_starts(np.exp(measured))))
    best = constants[objectives.argmin()]
    values, slopes = _logs(sizes, best[None])
    residuals = losses - values[0]
    error = float(np.sqrt(np.mean(residuals**2)))
    _check_decided(slopes[0])
    random, freedom = np.random.default_rng(seed), len(runs) - 5
    scale = np.sqrt(len(runs) / freedom) * np.sqrt(freedom / random.chisquare(freedom, (resamples, 1)))
    drawn = scale * random.choice(residuals - residuals.mean(), (resamples, len(runs) + 1))
    again, _ = _refined(sizes, values + drawn[:, :-1], np.tile(best, (resamples, 1)))
    return Fit(_law(best), tuple(map(_law, again)), tuple(map(float, drawn[:, -1])), error)


def _check(runs: Sequence[Run], resamples: int) -> None:
    if resamples < RESAMPLES:
        raise ValueError(f"resamples: expected at least {RESAMPLES}, got {resamples}")
    if len(runs) < FEWEST:
        raise ValueError(f"a scaling law has five constants: expected at least {FEWEST} runs to fit, got {len(runs)}")
    for run in runs:
        if not all(math.isfinite(value) and value > 0 for value in run):
            raise ValueError(f"expected parameters, tokens and a loss above 0, got {run}")
    for name in ("parameters", "tokens"):
        if len(found := sorted({getattr(run, name) for run in runs})) < DISTINCT:
            raise ValueError(
                f"expected runs with at least {DISTINCT} different numbers of {name}, got "
                + " and ".join(f"{value:,.0f}" for value in found)
            )


def _check_decided(slopes: np.ndarray) -> None:
    """slopes: (n, 5), derivatives of the law's log at the runs, by the logs of its constants."""
    condition = np.linalg.cond(slopes / np.linalg.norm(slopes, axis=0))
    if not condition < DETERMINED:
        raise ValueError(
            "these runs do not decide the law's constants. Expected runs with the same number of parameters and "
            "different tokens, and the other way round; not, for instance, tokens in proportion to parameters"
        )


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


def _refined(sizes: np.ndarray, losses: np.ndarray, logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K, 5): laws by damped Gauss–Newton steps, in logarithms, since constants are above 0; (K,): their Huber losses.

    sizes: (n, 2), log(parameters) and log(tokens). losses: (K, n), log(loss) of K data sets. logs: (K, 5), the starts.
    """
    damping, objective = np.full(len(logs), 1e-2), _huber(_logs(sizes, logs)[0] - losses)
    for _ in range(STEPS):
        values, slopes = _logs(sizes, logs)
        error = values - losses
        weighted = slopes / np.maximum(np.abs(error) / DELTA, 1.0)[..., None]  # the Huber loss, as weighted squares
        curvature = weighted.transpose(0, 2, 1) @ slopes
        diagonal = np.einsum("kii->ki", curvature) * damping[:, None] + 1e-12
        gradient = (weighted * error[..., None]).sum(1)
        step = np.linalg.solve(curvature + diagonal[..., None] * np.eye(5), gradient[..., None])[..., 0]
        tried = logs - np.clip(step, -1.0, 1.0)
        objective_then = _huber(_logs(sizes, tried)[0] - losses)
        better = objective_then < objective
        logs, objective = np.where(better[:, None], tried, logs), np.where(better, objective_then, objective)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-9, 1e9)
    return logs, objective


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
