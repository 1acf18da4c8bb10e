"""The merged results of a sweep's jobs: every metric with its interval over seeds, methods compared seed by seed."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from components.evaluation.measure.over_seeds import over_seeds, paired
from components.evaluation.studies.overoptimization_curves import recommended

COMPARED_TO = ("sft", "ppo")


class Job(NamedTuple):
    """The results of one job of a sweep, by kind, and the cards of its reward models.

    report: report.json; rewards: rewards.json; optimum: optimum.json; overoptimization: overoptimization.json; scaling:
    {comparisons: card}.
    """

    seed: str
    report: Mapping[str, Any] | None = None
    rewards: Mapping[str, Any] | None = None
    optimum: Mapping[str, Any] | None = None
    overoptimization: Mapping[str, Any] | None = None
    scaling: Mapping[int, Mapping[str, Any]] = {}

    @property
    def results(self) -> list[Mapping[str, Any]]:
        """The results of the whole job that exist."""
        return [one for one in (self.report, self.rewards, self.optimum, self.overoptimization) if one]


def summarize(jobs: Sequence[Job]) -> dict[str, Any]:
    """Every metric of the jobs (one per seed) as a spread, nested like the jobs' own results:

    seeds             the seeds that have results, as strings, in the order of a spread's values
    report            models, base, reward_model, best_of_n, majority, choice, budget, minutes …
    gains             {model: {sft, ppo}}: paired differences in gold from those models on the same seeds
    rewards           like rewards.json; gains: {model: {function}}: paired differences in what the functions say of
                      sampled responses from those of sft
    optimum           like optimum.json
    overoptimization  like overoptimization.json; recommended: the beta with the highest mean gold at the end
    scaling           {comparisons: {accuracy, ece, seconds}} on held-out questions
    A kind that no job has is left out.
    """
    jobs = [job for job in jobs if job.results or job.scaling]
    summary: dict[str, Any] = {
        "report": over_seeds([_without_intervals(job.report) for job in jobs]),
        "rewards": _rewards(jobs),
        "optimum": over_seeds([_without_intervals(job.optimum) for job in jobs]),
        "overoptimization": over_seeds([_without_intervals(job.overoptimization) for job in jobs]),
        "scaling": over_seeds([_accuracies(job.scaling) for job in jobs]),
    }
    if summary["scaling"]:
        summary["scaling"] = dict(sorted(summary["scaling"].items(), key=lambda item: int(item[0])))
    summary = {kind: value for kind, value in summary.items() if value}
    if "overoptimization" in summary:
        runs = dict(sorted(summary["overoptimization"]["runs"].items(), key=lambda item: float(item[0])))
        summary["overoptimization"] |= {"runs": runs, "recommended": recommended(runs)}
    models = summary.get("report", {}).get("models", {})
    gains = {
        name: {
            other: paired(metrics.get("gold"), models[other].get("gold"))
            for other in COMPARED_TO
            if other in models and other != name
        }
        for name, metrics in models.items()
        if "gold" in metrics
    }
    return {"seeds": [job.seed for job in jobs], **summary, **({"gains": gains} if gains else {})}


def _rewards(jobs: Sequence[Job]) -> dict[str, Any] | None:
    found = over_seeds([_without_intervals(job.rewards) for job in jobs])
    if not found:
        return None
    parts = {name: metrics["sampled"].get("parts", {}) for name, metrics in found["models"].items()}
    before = parts.pop("sft", {})
    gains = {
        name: {function: paired(part["mean"], before[function]["mean"]) for function, part in own.items()}
        for name, own in parts.items()
        if before.keys() >= own.keys()
    }
    return {**found, "gains": gains}


def _accuracies(cards: Mapping[int, Mapping[str, Any]]) -> dict[str, Any] | None:
    names = {"accuracy": "val/accuracy", "ece": "val/ece", "seconds": "seconds"}
    by_size = {str(size): card["metrics"] for size, card in cards.items()}
    return {size: {name: metrics.get(key) for name, key in names.items()} for size, metrics in by_size.items()} or None


def _without_intervals(value: Any) -> Any:
    """A result without what must not be averaged over seeds: intervals of one seed, answers, inputs."""
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if not _is_of_one_seed(k, v)}
        return {key: _without_intervals(inner) for key, inner in kept.items()}
    return value


def _is_of_one_seed(key: str, value: Any) -> bool:
    listed = key == "samples" and not isinstance(value, int)  # the answers, not how many there are
    return "_ci" in key or key == "ci" or listed or key in ("inputs", "seed", "versions")
