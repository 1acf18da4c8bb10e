"""The quality of answers: the verdicts of the world's judge and the reward model, and which of two answers wins."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from components.evaluation.measure import quality as world_quality
from components.evaluation.measure.intervals import mean_interval, share_interval
from components.evaluation.measure.policy import TOKENS_AT_ONCE, Responses, scores
from components.functional.estimators import ranking_credit
from components.models.heads import ScalarModel
from components.tokenizer.tokenizer import Tokenizer
from components.world.gold import Judgment
from components.world.world import World

Prompt = Mapping[str, Any]


class Judges(NamedTuple):
    """What assesses answers: the tokenizer, and the world's judge and the reward model if there are any.

    proxy: a second reward model, whose scores are only shown. tokens_at_once: how many tokens these read at once."""

    tokenizer: Tokenizer
    world: World | None
    reward: ScalarModel | None
    proxy: ScalarModel | None = None
    tokens_at_once: int = TOKENS_AT_ONCE


class WinRate(NamedTuple):
    """Against a reference's answers to the same prompts.

    win_rate     share of pairs (answer, answer of the reference) in which the former is better, ties counting as half
    win_rate_ci  95% interval, answers to one prompt being dependent (intervals.share_interval); None if the reference
                 is compared with itself, since ½ is then not an estimate
    """

    win_rate: float
    win_rate_ci: list[float] | None


class Assessed(NamedTuple):
    """Responses, the same number for every prompt, and their assessment.

    judgments: the judge's, None without a world. scores: (N,), the reward model's, None without one.
    proxy_scores: those of the second reward model.
    """

    responses: Responses
    judgments: list[Judgment] | None
    scores: Tensor | None
    proxy_scores: Tensor | None = None

    @property
    def worth(self) -> Tensor | None:
        """(N,) what decides between two answers: gold if there is a judge, else the score; None without either."""
        if self.judgments is None:
            return self.scores
        return torch.tensor([judgment.gold for judgment in self.judgments], dtype=torch.float64)

    def by_prompt(self, values: Tensor | Sequence[float]) -> Tensor:
        """(N,) values, one per response, as (prompts, samples) in fp64."""
        return torch.as_tensor(values, dtype=torch.float64).view(len(set(self.responses.prompt_index)), -1)


def question_of(prompt: Prompt) -> str:
    """The text of a prompt: itself, or the content of its last message."""
    asked = prompt["prompt"]
    return asked if isinstance(asked, str) else asked[-1]["content"]


def assess(responses: Responses, prompts: Sequence[Prompt], judges: Judges) -> Assessed:
    """Responses assessed by every available judge; reward models always read them after the chat prompt."""
    judgments = None
    if judges.world is not None:
        judgments = world_quality.judgments(judges.world, [question_of(prompt) for prompt in prompts], responses)
    chat = [list(prompt["ids"]) for prompt in prompts]
    reading = {"pad_id": judges.tokenizer.pad_id, "tokens_at_once": judges.tokens_at_once}
    given = (
        None if model is None else scores(model, chat, responses, **reading) for model in (judges.reward, judges.proxy)
    )
    return Assessed(responses, judgments, *given)


def quality_metrics(assessed: Assessed) -> dict[str, Any]:
    """Metrics of answers: with a judge, the fields of quality.Quality; with a reward model, score and score_ci; with a
    second one, also proxy_score and proxy_score_ci."""
    metrics: dict[str, Any] = {}
    if assessed.judgments is not None:
        metrics |= world_quality.quality(assessed.judgments, assessed.responses)._asdict()
    for name, given in (("score", assessed.scores), ("proxy_score", assessed.proxy_scores)):
        if given is not None:
            interval = mean_interval(given, assessed.responses.prompt_index)
            metrics |= {name: float(given.mean()), f"{name}_ci": interval}
    return metrics


def win_credits(mine: Tensor, theirs: Tensor) -> Tensor:
    """(P, S): for each of S answers to P prompts, the share of T other answers to its prompt that it beats.

    Ties count as half. mine (P, S), theirs (P, T): the worth of the answers.
    """
    return ranking_credit(mine[:, :, None] - theirs[:, None, :]).mean(2)


def win_rate(assessed: Assessed, reference: Assessed) -> WinRate | None:
    """The judge's gold decides or, without a world, the reward model's score; None with neither."""
    mine, theirs = assessed.worth, reference.worth
    if mine is None or theirs is None:
        return None
    if assessed is reference:
        return WinRate(0.5, None)
    credits = win_credits(assessed.by_prompt(mine), reference.by_prompt(theirs)).flatten()
    return WinRate(float(credits.mean()), share_interval(credits, assessed.responses.prompt_index))
