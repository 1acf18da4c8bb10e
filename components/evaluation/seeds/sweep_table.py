"""The jobs of a sweep side by side: their scores, means over seeds, and the best."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.evaluation.measure.over_seeds import half_width, spread
from components.system.disk import read_json_if_any
from components.training.better import mode_of


def lines(jobs: Sequence[Any]) -> list[str]:
    """A table for each metric by which jobs are compared.

    jobs: with overrides, folder, code, metric (its name in card.json) and mode, min or max, for a metric that is not in
    `training.better`. Failed jobs are excluded from means. Jobs without an artifact of their own, such as pipelines,
    have no line; no lines if no job has one.
    """
    stages = {override for job in jobs for override in job.overrides if override.startswith("stage=")}
    metrics = dict.fromkeys(job.metric for job in jobs if job.metric)
    return [line for metric in metrics for line in _table(metric, jobs, several_stages=len(stages) > 1)]


def _table(metric: str, jobs: Sequence[Any], *, several_stages: bool) -> list[str]:
    """One line for each set of settings: mean ± half of the 95% interval over its seeds. The best is marked if it is
    known whether low or high is better, but not among losses of several stages, which are different quantities."""
    left_out = ("seed=",) if several_stages else ("seed=", "stage=")
    jobs = [job for job in jobs if job.metric == metric]
    groups: dict[str, list[float | None]] = defaultdict(list)
    failures: Counter[str] = Counter()
    for job in jobs:
        name = " ".join(override for override in job.overrides if not override.startswith(left_out))
        groups[name].append(None if job.code else score(job.folder, metric))
        failures[name] += job.code != 0
    scored = {name: values for name, values in groups.items() if any(value is not None for value in values)}
    if not scored:
        return []
    spreads: dict[str, Any] = {}
    for name, values in scored.items():
        spreads[name] = spread([value for value in values if value is not None])
    means = {name: group["mean"] for name, group in spreads.items()}
    mode = None if several_stages and metric == "val/loss" else mode_of(metric) or jobs[0].mode
    best = {"min": min, "max": max}[mode](means, key=means.__getitem__) if mode and len(scored) > 1 else None
    width = max(map(len, scored))
    table = [f"{metric} (mean ± 95% interval over seeds)"]
    for name, group in spreads.items():
        half = half_width(group)
        interval = "" if half is None else f" ± {half:.2g}"
        without = len(groups[name]) - group["n"] - failures[name]
        failed = f", {failures[name]} failed" if failures[name] else ""
        failed += f", {without} without {metric}" if without else ""
        mark = "   best" if name == best else ""
        label = name or "as configured"
        table.append(f"  {label:<{width}}  {group['mean']:.4g}{interval}   n = {group['n']}{failed}{mark}")
    return table


def score(folder: str | Path, metric: str) -> float | None:
    """The metric in the card of the artifact in a job's folder, None if there is none."""
    card = read_json_if_any(Path(folder) / "export/card.json") or {}
    return card.get("metrics", {}).get(metric)
