"""95% intervals for means of values that come in clusters (samples of a question, pairs of a prompt)."""

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

ROUNDING = 1e-12  # a standard error below it comes from summing equal values
Z = 1.959964  # standard normal, 97.5%
_T_FEW = (12.706, 4.303, 3.182, 2.776)  # Student's t, 97.5%, 1 to 4 degrees of freedom


def t_quantile(degrees: float) -> float:
    """97.5% quantile of Student's t, to 1% for any whole number of degrees of freedom from 1 up.

    Values below 5 are rounded down, to at least 1, so an interval is never too narrow.

    Source: Abramowitz & Stegun 1964, 26.7.5 (first two terms); its table 26.10 where those are too inaccurate.
    """
    if degrees < len(_T_FEW) + 1:
        return _T_FEW[max(int(degrees), 1) - 1]
    return Z + (Z**3 + Z) / (4 * degrees) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * degrees**2)


def clustered(values: Tensor, clusters: Sequence[Hashable]) -> tuple[float, float | None, float]:
    """(mean, standard error, number of clusters) of all values; values of one cluster may depend on each other.

    values: (N,), N >= 1. clusters: N keys. The error is the jackknife's over C clusters of sizes n_c,
    √((C−1)/C · Σ_c ((sum_c − mean·n_c) / (1 − n_c/N))²) / N; for equal sizes, the deviation of cluster means over √C.
    None for a single cluster, since nothing shows how another would differ. 0 if all agree. The number of clusters is
    that of equal ones that carry as much information, N² / Σ n_c²: close to 1 if one cluster has most of the values.
    Sources: MacKinnon & White 1985 (HC3), by clusters Bell & McCaffrey 2002; Kish 1965, section 8.2.
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
    sizes = number.bincount().double()
    residuals = torch.zeros(count, dtype=torch.float64).index_add(0, number, values - mean) / (1 - sizes / len(values))
    error = float(((count - 1) / count * residuals.square().sum()).sqrt()) / len(values)
    return float(mean), error if error > ROUNDING else 0.0, len(values) ** 2 / float(sizes.square().sum())


def mean_interval(values: Tensor, clusters: Sequence[Hashable]) -> list[float] | None:
    """[low, high] of the mean by Student's t over clusters, see `clustered`.

    None for a single cluster, or if all have the same mean: nothing shows how another would differ.
    """
    mean, error, count = clustered(values, clusters)
    if not error:
        return None
    half = t_quantile(count - 1) * error
    return [mean - half, mean + half]


def share_interval(values: Tensor, clusters: Sequence[Hashable]) -> list[float]:
    """[low, high] of a share, values in 0..1: Wilson's interval with the effective number of independent values.

    That number is p(1−p)/error² · (z/t)², at most N; t, with C − 1 degrees of freedom, accounts for an error estimated
    from C clusters, of which `clustered` counts fewer if their sizes are unequal. If the error is 0 or unknown (all
    correct, one cluster), it is the number of clusters. Never leaves 0..1 and never shrinks to a point. In simulations
    it covers the share at least 93% of the time from 2 clusters up, whether or not a few have most of the values, but
    90% if all errors are in a few of many clusters.
    Source: Wilson 1927; Korn & Graubard 1998, section 2, for the effective number.
    """
    share, error, count = clustered(values, clusters)
    if not error:
        return _wilson(share, count)
    return _wilson(share, min(share * (1 - share) / error**2 * (Z / t_quantile(count - 1)) ** 2, len(values)))


def interval_of_shares(shares: Tensor) -> list[float]:
    """[low, high] of the mean of shares in 0..1, one per question: Wilson's interval for values between 0 and 1.

    Such values vary less than 0/1 values of single answers, by the ratio f = s²/(p(1−p)): n of them are as good as
    n/f · (z/t)² answers, with t of n − 1 degrees of freedom. A few shares that happen to agree would give an f near 0,
    so z² values of ratio 1 are added to the estimate. If all are equal, or there is only one, f is 1.
    If most shares are nearly 1, Student's t covers 27 to 65% at 3 to 12 questions and this at least 96%; at 40 such
    questions it covers 89%.
    Source: as for share_interval; the added values as in Agresti & Coull 1998.
    """
    count, mean = len(shares), float(shares.double().mean())
    variance = float(shares.double().var()) if count > 1 else 0.0
    if variance < ROUNDING**2:
        return _wilson(mean, count)
    ratio = (count * variance / (mean * (1 - mean)) + Z**2) / (count + Z**2)
    return _wilson(mean, count / ratio * (Z / t_quantile(count - 1)) ** 2)


def _wilson(share: float, count: float) -> list[float]:
    """[low, high] of a share of `count` independent values.  Source: Wilson 1927."""
    center = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return [max(center - half, 0.0), min(center + half, 1.0)]
