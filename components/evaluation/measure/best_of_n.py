"""Best-of-n: of n samples of a policy, the one that the reward model scores highest; the baseline for RL."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from components.evaluation.measure.assessment import Assessed, win_credits
from components.evaluation.measure.intervals import interval_of_shares, mean_interval
from components.functional.estimators import best_of_n_kl

SHOWN_N = 16  # the n of the row among the models


class BestOfNCurve(NamedTuple):
    """A curve over n = 1, 2, 4, … up to the samples per prompt; each a list:

    n                  number of answers from which the one with the highest score is taken
    kl                 ln n − (n−1)/n, nats: exact if no answer occurs twice, else an upper bound
    score              mean score of the chosen answer
    gold, gold_ci      its mean gold, 95% interval over prompts (None if prompts do not differ); None without a world
    correct            share of correct ones; None without a world
    """

    n: list[int]
    kl: list[float]
    score: list[float]
    gold: list[float] | None = None
    gold_ci: list[list[float] | None] | None = None
    correct: list[float] | None = None

    def metrics(self) -> dict[str, Any]:
        """The lists that are not None, by name."""
        return {name: values for name, values in self._asdict().items() if values is not None}


def selection_probabilities(scores: Tensor, n: int) -> Tensor:
    """(P, N) fp64: the probability that each of N samples has the highest score of n picked from the N.

    Σ weight·x is an unbiased estimate of E[x of the best of n], for any quantity x of a sample; with x the score it is
    that of Nakano et al. 2021 (WebGPT), appendix I. With l samples of lower score and h of lower or equal score, the
    weight is (C(h, n) − C(l, n)) / C(N, n) / (h − l): equal scores share their weight, as if ties were broken fairly.
    scores: (P, N). Raises ValueError unless 1 <= n <= N.
    """
    total = scores.shape[-1]
    if not 1 <= n <= total:
        raise ValueError(f"selection_probabilities: expected n between 1 and the {total} samples, got {n}")
    lower = (scores[:, None, :] < scores[:, :, None]).sum(2)
    not_higher = (scores[:, None, :] <= scores[:, :, None]).sum(2)
    shares = [math.comb(count, n) / math.comb(total, n) for count in range(total + 1)]
    all_below = torch.tensor(shares, dtype=torch.float64)
    return (all_below[not_higher] - all_below[lower]) / (not_higher - lower)


def best_of_n(assessed: Assessed) -> BestOfNCurve:
    """The curve of answers scored by a reward model."""
    traits = {name: assessed.by_prompt(values) for name, values in _traits(assessed).items()}
    scores = traits["score"]
    counts = [2**power for power in range(scores.shape[1].bit_length())]

    def of_chosen(name: str) -> list[Tensor]:
        """Per n, the expected value of each prompt's chosen answer."""
        return [(selection_probabilities(scores, n) * traits[name]).sum(1) for n in counts]

    curve = BestOfNCurve(counts, [best_of_n_kl(n) for n in counts], _means(of_chosen("score")))
    if assessed.judgments is None:
        return curve
    gold = of_chosen("gold")
    intervals = [mean_interval(values, range(len(values))) for values in gold]
    return curve._replace(gold=_means(gold), gold_ci=intervals, correct=_means(of_chosen("correct")))


def best_row(assessed: Assessed, reference: Assessed) -> dict[str, Any]:
    """The metrics of a policy that answers with the best of SHOWN_N, as far as they apply to it.

    finished, length, score, gold, correct, polite, … as for a model; kl: analytic, see best_of_n; win_rate: against
    the reference's answers, which are not those chosen from.
    """
    assert assessed.scores is not None and assessed.worth is not None and reference.worth is not None
    weights = selection_probabilities(assessed.by_prompt(assessed.scores), SHOWN_N)

    def chosen(values: Tensor) -> Tensor:
        return (weights * values).sum(1)

    row: dict[str, Any] = {"kl": best_of_n_kl(SHOWN_N)}
    for name, values in _traits(assessed).items():
        of_prompt = chosen(assessed.by_prompt(values))
        row[name] = float(of_prompt.mean())
        if name in ("gold", "score"):
            row[f"{name}_ci"] = mean_interval(of_prompt, range(len(of_prompt)))
    worth = assessed.by_prompt(assessed.worth)
    wins = chosen(win_credits(worth, reference.by_prompt(reference.worth)))
    return row | {"win_rate": float(wins.mean()), "win_rate_ci": interval_of_shares(wins)}


def _means(of_prompts: list[Tensor]) -> list[float]:
    return [float(values.mean()) for values in of_prompts]


def _traits(assessed: Assessed) -> dict[str, Any]:
    """Per response: the quantities whose means are metrics."""
    responses, judgments = assessed.responses, assessed.judgments
    lengths = list(map(len, responses.ids))
    traits: dict[str, Any] = {"score": assessed.scores, "finished": responses.finished, "length": lengths}
    if judgments is not None:
        traits |= {name: [getattr(j, name) for j in judgments] for name in ("gold", "correct", "wrong_name")}
        traits |= {name: [getattr(j, name) for j in judgments] for name in ("rude", "hedge", "filler", "words")}
        traits["polite"] = [j.polite > 0 for j in judgments]
        traits["correct_polite"] = [j.correct and j.polite > 0 for j in judgments]
    return traits
