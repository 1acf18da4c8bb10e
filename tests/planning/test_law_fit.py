"""A scaling law fitted to runs: it finds the law that made them, and its intervals mean what they say."""

import math

import numpy as np
import pytest

from components.planning.compute_optimal import CHINCHILLA, Law
from components.planning.law_fit import Run, fit

LAW = Law(E=0.6, A=60.0, B=900.0, alpha=0.4, beta=0.5)
SIZES = [(n, d) for n in (5e4, 1.3e5, 2.7e5) for d in (5e5, 1e6, 2e6, 4e6)]


def runs_of(law, sizes=SIZES, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return [Run(n, d, law.loss(n, d) * math.exp(noise * rng.standard_normal())) for n, d in sizes]


@pytest.mark.parametrize("law", [LAW, CHINCHILLA, Law(1.0, 1e5, 3.0, 1.2, 0.1)], ids=["small", "chinchilla", "steep"])
def test_the_law_of_runs_without_noise_is_found(law):
    sizes = SIZES if law is not CHINCHILLA else [(n, d) for n in (1e8, 4e8, 2e9) for d in (2e9, 1e10, 5e10)]
    found = fit(runs_of(law, sizes), resamples=20, seed=0)
    assert found.error < 1e-5
    larger = (10 * sizes[-1][0], 10 * sizes[-1][1])
    assert found.law.loss(*larger) == pytest.approx(law.loss(*larger), rel=0.003)
    assert found.law.alpha == pytest.approx(law.alpha, rel=0.05) and found.law.beta == pytest.approx(law.beta, rel=0.05)


def test_a_run_that_failed_moves_the_law_little():
    runs = runs_of(LAW)
    runs[4] = runs[4]._replace(loss=3 * runs[4].loss)
    law = fit(runs, resamples=20, seed=0).law
    assert law.loss(5e5, 8e6) == pytest.approx(LAW.loss(5e5, 8e6), rel=0.01)


def test_nine_of_ten_new_runs_are_in_their_intervals():
    """60 data sets with errors of 1% and a new run each: 54 are expected, 45 or fewer happen once in 1,500."""
    inside = 0
    for seed in range(60):
        low, high = fit(runs_of(LAW, noise=0.01, seed=seed), resamples=40, seed=seed).predicted(5e5, 8e6)[1:]
        inside += low <= runs_of(LAW, [(5e5, 8e6)], noise=0.01, seed=1000 + seed)[0].loss <= high
    assert inside >= 46


def test_more_noise_makes_wider_intervals_and_the_seed_decides():
    def width(noise):
        low, high = fit(runs_of(LAW, noise=noise), resamples=40, seed=1).predicted(5e5, 8e6)[1:]
        return high - low

    assert 0 < width(0.003) < width(0.03)
    again = [fit(runs_of(LAW, noise=0.01), resamples=20, seed=seed).resampled for seed in (3, 3, 4)]
    assert again[0] == again[1] != again[2]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (SIZES[:5], "at least 6 runs to fit, got 5"),
        (
            [(n, d) for n in (5e4, 2e5) for d in (5e5, 1e6, 2e6)],
            "3 different numbers of parameters, got 50,000 and 200,",
        ),
        (
            [(n, d) for n in (5e4, 1e5, 2e5) for d in (5e5, 1e6)],
            "different numbers of tokens, got 500,000 and 1,000,000",
        ),
        ([(n, 20 * n) for n in np.geomspace(5e4, 1e6, 8)], "do not decide the law's constants"),
    ],
    ids=["few", "sizes", "tokens", "proportional"],
)
def test_runs_that_decide_no_law_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        fit(runs_of(LAW, sizes, noise=0.003), resamples=20, seed=0)


def test_numbers_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="a loss above 0, got .*nan"):
        fit([*runs_of(LAW), Run(1e5, 1e6, math.nan)], resamples=20, seed=0)
    with pytest.raises(ValueError, match="resamples: expected at least 20, got 19"):
        fit(runs_of(LAW), resamples=19, seed=0)
