"""The jobs of a sweep side by side: their scores, means over seeds, and the best."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.evaluation.measure.over_seeds import half_width, spread
from components.system.disk import read_json_if_any

LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "ece")  # in a metric's name


def lines(jobs: Sequence[Any]) -> list[str]:
    """One line for each set of settings: mean ± half of the 95% interval over its seeds; the best is marked.

    jobs: with overrides, folder, code and metric (its name in card.json). Failed jobs are excluded from means. Jobs
    without an artifact of their own, such as pipelines, have no line; no lines if no job has one.
    """
    groups: dict[str, list[float | None]] = defaultdict(list)
    failures: Counter[str] = Counter()
    metric = next((job.metric for job in jobs if job.metric), None)
    for job in jobs:
        others = [o for o in job.overrides if not o.startswith(("seed=", "stage="))]
        name = " ".join(others)
        groups[name].append(None if job.code else score(job.folder, job.metric))
        failures[name] += job.code != 0
    scored = {name: values for name, values in groups.items() if any(value is not None for value in values)}
    if not scored or metric is None:
        return []
    spreads: dict[str, Any] = {}
    for name, values in scored.items():
        spreads[name] = spread([value for value in values if value is not None])
    means = {name: group["mean"] for name, group in spreads.items()}
    best = (min if any(word in metric for word in LOWER_IS_BETTER) else max)(means, key=means.__getitem__)
    width = max(map(len, scored))
    table = [f"{metric} (mean ± 95% interval over seeds)"]
    for name, group in spreads.items():
        half = half_width(group)
        interval = "" if half is None else f" ± {half:.2g}"
        without = len(groups[name]) - group["n"] - failures[name]
        failed = f", {failures[name]} failed" if failures[name] else ""
        failed += f", {without} without {metric}" if without else ""
        mark = "   best" if name == best and len(scored) > 1 else ""
        label = name or "as configured"
        table.append(f"  {label:<{width}}  {group['mean']:.4g}{interval}   n = {group['n']}{failed}{mark}")
    return table


def score(folder: str | Path, metric: str | None) -> float | None:
    """The metric in the card of the artifact in a job's folder, None if there is none."""
    card = read_json_if_any(Path(folder) / "export/card.json") or {}
    return card.get("metrics", {}).get(metric)
