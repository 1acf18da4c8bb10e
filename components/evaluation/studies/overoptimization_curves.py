"""Over-optimization: true quality (gold) and the reward model's score (proxy) against √KL, gold's peak, the best β.

Source: Gao et al. 2022 (Scaling Laws for Reward Model Overoptimization); d is √KL to the initial policy.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from components.evaluation.measure.assessment import Assessed
from components.evaluation.measure.best_of_n import best_of_n
from components.evaluation.measure.over_seeds import number
from components.evaluation.report.curves import Curve

WINDOW = 5  # rollouts averaged
TAGS = {"kl": "rollout/kl", "proxy": "rollout/score", "gold": "rollout/gold"}


def smoothed(values: Sequence[float]) -> list[float]:
    """Means over WINDOW neighbors, fewer at the ends, where the window is shortened equally on both sides."""
    reach = [min(WINDOW // 2, i, len(values) - 1 - i) for i in range(len(values))]
    return [math.fsum(values[i - r : i + r + 1]) / (2 * r + 1) for i, r in enumerate(reach)]


def describe_run(beta: float, curves: Mapping[str, Curve]) -> dict[str, Any]:
    """One PPO run: its curves by rollout, gold's turning point, how it ends, and Gao's law fitted to it.

    curves: those of TAGS; raises ValueError without them.
        beta
        curve       kl, sqrt_kl, proxy, gold: lists by rollout, as logged; sqrt_kl of the smoothed KL
        turning     see `turning_point`
        final       kl, proxy, gold: means over the last WINDOW rollouts
        fit         see `fit_rl`, with the first rollout's gold as gold0; None if nothing can be fitted
    """
    missing = [tag for tag in TAGS.values() if tag not in curves]
    if missing:
        raise ValueError(
            f"the PPO run with beta {beta} logged no {', '.join(missing)}; gold is known only on the built-in world, "
            "and curves are read from files that logger=tensorboard or csv wrote. Run it again with: "
            "python train.py experiment=overoptimization"
        )
    curve = {name: list(curves[tag].values) for name, tag in TAGS.items()}
    distance = [math.sqrt(max(value, 0.0)) for value in smoothed(curve["kl"])]
    return {
        "beta": beta,
        "curve": {**curve, "sqrt_kl": distance},
        "turning": turning_point(distance, curve["gold"]),
        "final": {name: math.fsum(values[-WINDOW:]) / len(values[-WINDOW:]) for name, values in curve.items()},
        "fit": fit_rl(distance, [gold - curve["gold"][0] for gold in curve["gold"]]),
    }


def turning_point(distance: Sequence[float], gold: Sequence[float]) -> dict[str, Any]:
    """The maximum of smoothed gold, excluding the ends: rollout, sqrt_kl, gold; fall: from there to the final mean.

    turned: 1 if gold fell by more than chance explains, else 0. Chance: three times the standard deviation of a
    difference of two means of WINDOW values, √(2/WINDOW)·s, with s that of gold around its smoothed self; three,
    because the peak is the highest of many means. Raises ValueError for fewer than WINDOW rollouts.
    """
    if len(gold) < WINDOW:
        raise ValueError(f"over-optimization: expected at least {WINDOW} rollouts in a run, got {len(gold)}")
    smooth, inner = smoothed(gold), range(WINDOW // 2, len(gold) - WINDOW // 2)
    peak = max(inner, key=smooth.__getitem__)
    # a value is 1/WINDOW of its own mean, so its residual has (1 − 1/WINDOW) of its variance
    variance = sum((gold[i] - smooth[i]) ** 2 for i in inner) / len(inner) / (1 - 1 / WINDOW)
    fall = smooth[peak] - math.fsum(gold[-WINDOW:]) / WINDOW
    return {
        "rollout": peak,
        "sqrt_kl": distance[peak],
        "gold": smooth[peak],
        "fall": fall,
        "turned": int(fall > 3 * math.sqrt(2 / WINDOW * variance) + 1e-9),  # 1e-9 for rounding
    }


def fit_rl(distance: Sequence[float], gain: Sequence[float]) -> dict[str, float] | None:
    """gain = d·(alpha − beta_gold·ln d) by least squares over points with d > 0: alpha, beta_gold, r2, peak_sqrt_kl.

    peak_sqrt_kl: the d of the law's maximum, exp(alpha/beta_gold − 1); left out if it has none (beta_gold ≤ 0).
    None for fewer than three points.  Source: Gao et al. 2022, section 3.1 (RL).
    """
    points = [(d, y) for d, y in zip(distance, gain, strict=True) if d > 0]
    solution = _least_squares([[d, -d * math.log(d)] for d, _ in points], [y for _, y in points])
    if solution is None:
        return None
    (alpha, beta_gold), r2 = solution
    fit = {"alpha": alpha, "beta_gold": beta_gold, "r2": r2}
    if beta_gold > 0 and alpha / beta_gold < 10:  # beyond that, no run could reach the maximum
        fit["peak_sqrt_kl"] = math.exp(alpha / beta_gold - 1)
    return fit


def fit_best_of_n(distance: Sequence[float], gain: Sequence[float]) -> dict[str, float] | None:
    """gain = d·(alpha − beta_gold·d), otherwise like `fit_rl`.  Source: Gao et al. 2022, section 3.1 (best-of-n)."""
    points = [(d, y) for d, y in zip(distance, gain, strict=True) if d > 0]
    solution = _least_squares([[d, -d * d] for d, _ in points], [y for _, y in points])
    if solution is None:
        return None
    (alpha, beta_gold), r2 = solution
    fit = {"alpha": alpha, "beta_gold": beta_gold, "r2": r2}
    return fit | ({"peak_sqrt_kl": alpha / (2 * beta_gold)} if beta_gold > 0 else {})


def best_of_n_curve(assessed: Assessed) -> dict[str, list[float]]:
    """Proxy and gold of the sample with the highest proxy among n of the initial policy: {n, kl, sqrt_kl, proxy, gold}.

    As in `best_of_n.best_of_n`, but with the proxy in units of its standard deviation over all samples, just as PPO's
    is in units of its standard deviation over the first rollout.
    """
    assert assessed.scores is not None
    curve, unit = best_of_n(assessed), float(assessed.scores.double().std())
    assert curve.gold is not None  # only called with a world's judge
    return {
        "n": [*curve.n],
        "kl": curve.kl,
        "sqrt_kl": [math.sqrt(kl) for kl in curve.kl],
        "proxy": [score / unit for score in curve.score],
        "gold": curve.gold,
    }


def recommended(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{beta, gold}: the β whose run ends with the highest gold; over seeds, the highest mean (gold: its spread)."""
    label, best = max(runs.items(), key=lambda item: number(item[1]["final"]["gold"]))
    return {"beta": float(label), "gold": best["final"]["gold"]}


def analyze(runs: Mapping[float, Mapping[str, Curve]], samples: Mapping[str, list[float]]) -> dict[str, Any]:
    """{runs: {β as a string: describe_run}, in order of β, best_of_n: `samples` with its fit, recommended}."""
    if not runs:
        raise ValueError("over-optimization: expected at least one PPO run, got none")
    described = {f"{beta:g}": describe_run(beta, runs[beta]) for beta in sorted(runs)}
    gain = [gold - samples["gold"][0] for gold in samples["gold"]]
    return {
        "runs": described,
        "best_of_n": {**samples, "fit": fit_best_of_n(samples["sqrt_kl"], gain)},
        "recommended": recommended(described),
    }


def _least_squares(features: list[list[float]], wanted: list[float]) -> tuple[list[float], float] | None:
    """(coefficients, R²) of `wanted` on two features; None for fewer than three points or if `wanted` is constant."""
    if len(wanted) < 3:
        return None
    x, y = torch.tensor(features, dtype=torch.float64), torch.tensor(wanted, dtype=torch.float64)
    total = float((y - y.mean()).square().sum())
    if total == 0:
        return None
    coefficients = torch.linalg.lstsq(x, y[:, None], driver="gelsd").solution[:, 0]
    return coefficients.tolist(), 1 - float((y - x @ coefficients).square().sum()) / total
