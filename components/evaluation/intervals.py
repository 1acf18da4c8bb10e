"""95 % intervals for means of values that come in clusters (samples of a question, pairs of a prompt)."""

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

Z = 1.959964  # standard normal, 97.5 %
_T_FEW = (12.706, 4.303, 3.182, 2.776)  # Student's t, 97.5 %, 1 to 4 degrees of freedom


def t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t, within 1 % for any degrees of freedom >= 1.

    Source: Abramowitz & Stegun 1964, 26.7.5 (first two terms); its table 26.10 where those are too coarse.
    """
    if degrees <= len(_T_FEW):
        return _T_FEW[degrees - 1]
    return Z + (Z**3 + Z) / (4 * degrees) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * degrees**2)


def clustered(values: Tensor, clusters: Sequence[Hashable]) -> tuple[float, float | None, int]:
    """(mean, standard error, number of clusters) of all values; values of one cluster may depend on each other.

    values: (N,), N >= 1. clusters: N keys. The error is that of the ratio Σ sums / Σ sizes over C clusters,
    √(C/(C−1) · Σ_c (sum_c − mean·size_c)²) / N; with equal sizes, the deviation of cluster means over √C.
    None for a single cluster: nothing tells how another would differ.  Source: Cochran 1977, eq. 9A.2.
    """
    if len(values) != len(clusters) or not len(values):
        raise ValueError(
            f"clustered: expected a cluster for each of 1 or more values, got {len(clusters)} for {len(values)}"
        )
    values = values.double().cpu()
    keys = {key: number for number, key in enumerate(dict.fromkeys(clusters))}
    number = torch.tensor([keys[key] for key in clusters])
    mean, count = values.mean(), len(keys)
    if count == 1:
        return float(mean), None, 1
    residuals = torch.zeros(count, dtype=torch.float64).index_add(0, number, values - mean)
    error = (count / (count - 1) * residuals.square().sum()).sqrt() / len(values)
    return float(mean), float(error), count


def mean_interval(values: Tensor, clusters: Sequence[Hashable]) -> list[float] | None:
    """[low, high] of the mean by Student's t over clusters; None for a single cluster. See `clustered`."""
    mean, error, count = clustered(values, clusters)
    if error is None:
        return None
    half = t_quantile(count - 1) * error
    return [mean - half, mean + half]


def share_interval(values: Tensor, clusters: Sequence[Hashable]) -> list[float]:
    """[low, high] of a share, values in 0..1: Wilson's interval with the number of values that are independent.

    That number is p(1−p)/error², at most N; where the error is 0 or unknown (all right, one cluster), it is the
    number of clusters. Never leaves 0..1 and never shrinks to a point.
    Source: Wilson 1927; Korn & Graubard 1998 for the effective number.
    """
    share, error, count = clustered(values, clusters)
    effective = min(share * (1 - share) / error**2, len(values)) if error else count
    centre = (share + Z**2 / (2 * effective)) / (1 + Z**2 / effective)
    half = Z / (1 + Z**2 / effective) * math.sqrt(share * (1 - share) / effective + Z**2 / (4 * effective**2))
    return [max(centre - half, 0.0), min(centre + half, 1.0)]


def interval_of_shares(shares: Tensor) -> list[float]:
    """[low, high] of the mean of shares in 0..1, one per question: Student's t, cut to 0..1.

    Where all are equal, or there is one, nothing tells how others would differ: Wilson's interval of as many values.
    """
    interval = mean_interval(shares, range(len(shares)))
    if interval is None or interval[0] == interval[1]:
        return share_interval(shares, range(len(shares)))
    return [max(interval[0], 0.0), min(interval[1], 1.0)]
