"""The results of a sweep's jobs as one: every figure with its interval over seeds, methods compared seed by seed."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from components.evaluation.measure.over_seeds import over_seeds, paired
from components.evaluation.studies.overoptimisation_curves import recommended

COMPARED_TO = ("sft", "ppo")


class Job(NamedTuple):
    """What one job of a sweep left behind: the results that are there, by kind, and its reward models' cards.

    report: report.json; optimum: optimum.json; overoptimisation: overoptimisation.json; scaling: {comparisons: card}.
    """

    seed: str
    report: Mapping[str, Any] | None = None
    optimum: Mapping[str, Any] | None = None
    overoptimisation: Mapping[str, Any] | None = None
    scaling: Mapping[int, Mapping[str, Any]] = {}


def summarise(jobs: Sequence[Job]) -> dict[str, Any]:
    """Every figure of the jobs, one per seed, as a spread, in the nesting of the jobs' own results:

    seeds             as many texts as a spread has values
    report            models, base, reward_model, best_of_n, majority, choice, budget, minutes …
    gains             {model: {sft, ppo}}: paired differences of gold to those models' on the same seeds
    optimum           as optimum.json
    overoptimisation  as overoptimisation.json; recommended: the beta with the highest mean gold at the end
    scaling           {comparisons: {accuracy, ece, seconds}} on held-out questions
    A kind that no job has is left out.
    """
    found: dict[str, Any] = {
        "report": over_seeds([_without_intervals(job.report) for job in jobs]),
        "optimum": over_seeds([_without_intervals(job.optimum) for job in jobs]),
        "overoptimisation": over_seeds([_without_intervals(job.overoptimisation) for job in jobs]),
        "scaling": over_seeds([_accuracies(job.scaling) for job in jobs]),
    }
    if found["scaling"]:
        found["scaling"] = dict(sorted(found["scaling"].items(), key=lambda item: int(item[0])))
    found = {kind: value for kind, value in found.items() if value}
    if "overoptimisation" in found:
        runs = dict(sorted(found["overoptimisation"]["runs"].items(), key=lambda item: float(item[0])))
        found["overoptimisation"] |= {"runs": runs, "recommended": recommended(runs)}
    models = found.get("report", {}).get("models", {})
    gains = {
        name: {
            of: paired(figures.get("gold"), models[of].get("gold")) for of in COMPARED_TO if of in models and of != name
        }
        for name, figures in models.items()
        if "gold" in figures
    }
    return {"seeds": [job.seed for job in jobs], **found, **({"gains": gains} if gains else {})}


def _accuracies(cards: Mapping[int, Mapping[str, Any]]) -> dict[str, Any] | None:
    names = {"accuracy": "val/accuracy", "ece": "val/ece", "seconds": "seconds"}
    figures = {str(size): card["metrics"] for size, card in cards.items()}
    return {size: {name: known.get(key) for name, key in names.items()} for size, known in figures.items()} or None


def _without_intervals(value: Any) -> Any:
    """A result without what must not be averaged over seeds: intervals of one seed, answers, what it was made from."""
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if "_ci" not in k and k not in ("samples", "inputs", "seed", "versions")}
        return {key: _without_intervals(inner) for key, inner in kept.items()}
    return value
