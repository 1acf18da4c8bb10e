"""Figures of several runs of one experiment, seed by seed, as means with intervals over seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from components.evaluation.measure.intervals import ROUNDING, t_quantile

LEAF = {"mean", "interval", "n", "values"}


def over_seeds(results: Sequence[Any]) -> Any:
    """What several seeds' results, nested dicts and lists of numbers, have in common: a `spread` at every number.

    results: one per seed; None stands for a missing one. Dicts are joined by key, lists by place; what only some
    seeds have is kept, with those seeds' values. Texts, flags and other things that have no mean are left out.
    Returns the same nesting, or None where no number is found.
    """
    present = [one for one in results if one is not None]
    if present and all(isinstance(one, Mapping) for one in present):
        keys = dict.fromkeys(key for one in present for key in one)
        found = {key: over_seeds([None if one is None else one.get(key) for one in results]) for key in keys}
        return {key: value for key, value in found.items() if value is not None} or None
    if present and all(isinstance(one, list | tuple) for one in present):
        length = max(map(len, present))
        by_place = [
            over_seeds([one[i] if one is not None and i < len(one) else None for one in results]) for i in range(length)
        ]
        return by_place if any(value is not None for value in by_place) else None
    return spread([one if _is_number(one) else None for one in results])


def spread(values: Sequence[float | None]) -> dict[str, Any] | None:
    """{mean, interval, n, values} of one figure; values: by seed, None where a seed lacks it.

    interval: [low, high], 95 % by Student's t over the n seeds that have the figure; None for fewer than two, and where
    all agree: nothing tells how another seed would differ, and five of five that pass do not make the sixth certain.
    None where no seed has it.
    """
    known = [float(value) for value in values if value is not None]
    if not known:
        return None
    n, mean = len(known), math.fsum(known) / len(known)
    interval = None
    if n > 1:
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1))
        half = t_quantile(n - 1) * deviation / math.sqrt(n)
        interval = [mean - half, mean + half] if deviation > ROUNDING * max(1.0, abs(mean)) else None
    return {"mean": mean, "interval": interval, "n": n, "values": list(values)}


def paired(figure: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The spread of figure − other over the seeds that have both; narrower than two spreads where seeds vary alike."""
    if figure is None or other is None:
        return None
    pairs = zip(figure["values"], other["values"], strict=True)
    return spread([None if a is None or b is None else a - b for a, b in pairs])


def is_spread(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == LEAF


def most_seeds(value: Any) -> int:
    """How many seeds the best known of some nested spreads rests on; 0 where there is none."""
    if is_spread(value):
        return value["n"]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return max(map(most_seeds, inner), default=0)


def number(value: Any) -> Any:
    """A figure of one seed as it is, one over seeds as its mean."""
    return value["mean"] if is_spread(value) else value


def half_width(value: Mapping[str, Any]) -> float | None:
    """Half the width of a spread's interval, the number behind ±; None where there is no interval."""
    return None if value["interval"] is None else (value["interval"][1] - value["interval"][0]) / 2


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
