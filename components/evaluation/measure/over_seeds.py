"""The metrics of several runs of one experiment, seed by seed, as means with intervals over seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from components.evaluation.measure.intervals import ROUNDING, t_quantile

LEAF = {"mean", "interval", "n", "values"}


def over_seeds(results: Sequence[Any]) -> Any:
    """The results of several seeds, nested dicts and lists of numbers, merged: a `spread` in place of every number.

    results: one per seed; None for a missing one. Dicts are joined by key, lists by index; what only some seeds have
    is kept, with those seeds' values. Strings, flags and anything else without a mean are left out.
    Returns the same nesting, or None if there are no numbers.
    """
    present = [result for result in results if result is not None]
    if present and all(isinstance(result, Mapping) for result in present):
        keys = dict.fromkeys(key for result in present for key in result)
        merged = {key: over_seeds([None if result is None else result.get(key) for result in results]) for key in keys}
        return {key: value for key, value in merged.items() if value is not None} or None
    if present and all(isinstance(result, list | tuple) for result in present):
        length = max(map(len, present))
        by_index = [
            over_seeds([r[i] if r is not None and i < len(r) else None for r in results]) for i in range(length)
        ]
        return by_index if any(value is not None for value in by_index) else None
    return spread([result if _is_number(result) else None for result in results])


def spread(values: Sequence[float | None]) -> dict[str, Any] | None:
    """{mean, interval, n, values} of one metric; values: by seed, None if a seed lacks it.

    interval: [low, high], 95% by Student's t over the n seeds that have the metric; None for fewer than two, and if
    all agree: nothing shows how another seed would differ, and five passes out of five do not make the sixth certain.
    Returns None if no seed has it.
    """
    present = [float(value) for value in values if value is not None]
    if not present:
        return None
    n, mean = len(present), math.fsum(present) / len(present)
    interval = None
    if n > 1:
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in present) / (n - 1))
        half = t_quantile(n - 1) * deviation / math.sqrt(n)
        interval = [mean - half, mean + half] if deviation > ROUNDING * max(1.0, abs(mean)) else None
    return {"mean": mean, "interval": interval, "n": n, "values": list(values)}


def paired(metric: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The spread of metric − other over the seeds that have both; narrower than two spreads if they vary together."""
    if metric is None or other is None:
        return None
    pairs = zip(metric["values"], other["values"], strict=True)
    return spread([None if a is None or b is None else a - b for a, b in pairs])


def is_spread(value: Any) -> bool:
    """Whether a value is what `spread` returns."""
    return isinstance(value, Mapping) and set(value) == LEAF


def most_seeds(value: Any) -> int:
    """The largest number of seeds among nested spreads; 0 if there are none."""
    if is_spread(value):
        return value["n"]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return max(map(most_seeds, inner), default=0)


def number(value: Any) -> Any:
    """A metric of one seed as it is, a spread as its mean."""
    return value["mean"] if is_spread(value) else value


def half_width(value: Mapping[str, Any]) -> float | None:
    """Half the width of a spread's interval, the number after ±; None if there is no interval."""
    return None if value["interval"] is None else (value["interval"][1] - value["interval"][0]) / 2


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
