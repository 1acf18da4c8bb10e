"""The jobs of a sweep side by side: what each scored, means over seeds, the best."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.evaluation.measure.over_seeds import half_width, spread
from components.system.disk import read_json

LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "ece")  # in a metric's name


def lines(jobs: Sequence[Any]) -> list[str]:
    """One line for each set of settings: mean ± half of the 95 % interval over its seeds; the best is marked.

    jobs: with overrides, folder, code and metric (its name in card.json). A failed job counts in no mean. Jobs without
    an artifact of their own, such as pipelines, have no line; no lines where nobody has one.
    """
    groups: dict[str, list[float | None]] = defaultdict(list)
    failures: Counter[str] = Counter()
    metric = next((job.metric for job in jobs if job.metric), None)
    for job in jobs:
        others = [o for o in job.overrides if not o.startswith(("seed=", "stage="))]
        name = " ".join(others)
        groups[name].append(None if job.code else score(job.folder, job.metric))
        failures[name] += job.code != 0
    found = {name: values for name, values in groups.items() if any(value is not None for value in values)}
    if not found or metric is None:
        return []
    spreads: dict[str, Any] = {}
    for name, values in found.items():
        spreads[name] = spread([value for value in values if value is not None])
    means = {name: one["mean"] for name, one in spreads.items()}
    best = (min if any(word in metric for word in LOWER_IS_BETTER) else max)(means, key=means.__getitem__)
    width = max(map(len, found))
    told = [f"{metric} (mean ± 95 % interval over seeds)"]
    for name, one in spreads.items():
        half = half_width(one)
        interval = "" if half is None else f" ± {half:.2g}"
        without = len(groups[name]) - one["n"] - failures[name]
        failed = f", {failures[name]} failed" if failures[name] else ""
        failed += f", {without} without {metric}" if without else ""
        mark = "   best" if name == best and len(found) > 1 else ""
        told.append(f"  {name or 'as configured':<{width}}  {one['mean']:.4g}{interval}   n = {one['n']}{failed}{mark}")
    return told


def score(folder: str | Path, metric: str | None) -> float | None:
    """The metric in the card of the artifact below a job's folder, None where there is none."""
    card = read_json(Path(folder) / "export/card.json") or {}
    return card.get("metrics", {}).get(metric)
