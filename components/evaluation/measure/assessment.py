"""What answers are worth: what the world's judge and the reward model find in each, and which of two wins."""

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
from components.world.gold import Judgement
from components.world.world import World

Prompt = Mapping[str, Any]


class Judges(NamedTuple):
    """Who reads answers: the tokenizer always, the world's judge and the reward model where there are such.

    tokens_at_once: that the reward model reads together."""

    tokenizer: Tokenizer
    world: World | None
    reward: ScalarModel | None
    tokens_at_once: int = TOKENS_AT_ONCE


class Assessed(NamedTuple):
    """Responses, as many for every prompt, and what was found in each.

    found: the judge's findings, None without a world. scores: (N,) of the reward model, None without one.
    """

    drawn: Responses
    found: list[Judgement] | None
    scores: Tensor | None

    @property
    def worth(self) -> Tensor | None:
        """(N,) what decides between two answers: gold where there is a judge, else the score; None without either."""
        if self.found is None:
            return self.scores
        return torch.tensor([one.gold for one in self.found], dtype=torch.float64)

    def by_prompt(self, values: Tensor | Sequence[float]) -> Tensor:
        """(N,) values, one per response, as (prompts, samples) in fp64."""
        return torch.as_tensor(values, dtype=torch.float64).view(len(set(self.drawn.of)), -1)


def question_of(prompt: Prompt) -> str:
    """The text of a prompt: itself, or what the last message says."""
    asked = prompt["prompt"]
    return asked if isinstance(asked, str) else asked[-1]["content"]


def assess(drawn: Responses, prompts: Sequence[Prompt], judges: Judges) -> Assessed:
    """Has responses read by all judges there are; the reward model reads them after the chat prompt, always."""
    found = given = None
    if judges.world is not None:
        found = world_quality.judgements(judges.world, [question_of(prompt) for prompt in prompts], drawn)
    if judges.reward is not None:
        chat = [list(prompt["ids"]) for prompt in prompts]
        reading = {"pad_id": judges.tokenizer.pad_id, "tokens_at_once": judges.tokens_at_once}
        given = scores(judges.reward, chat, drawn, **reading)
    return Assessed(drawn, found, given)


def worth_figures(assessed: Assessed) -> dict[str, Any]:
    """world.quality of the judge's findings; score, the reward model's mean, and score_ci."""
    figures: dict[str, Any] = {}
    if assessed.found is not None:
        figures |= world_quality.quality(assessed.found, assessed.drawn)
    if assessed.scores is not None:
        mean = float(assessed.scores.mean())
        figures |= {"score": mean, "score_ci": mean_interval(assessed.scores, assessed.drawn.of)}
    return figures


def win_credits(mine: Tensor, theirs: Tensor) -> Tensor:
    """(P, S): of each of S answers to P prompts the share of T other answers to its prompt that it beats, ties half.

    mine (P, S), theirs (P, T): what the answers are worth.
    """
    return ranking_credit(mine[:, :, None] - theirs[:, None, :]).mean(2)


def win_rate(assessed: Assessed, reference: Assessed) -> dict[str, Any]:
    """win_rate: share of pairs of an answer and one of the reference to the same prompt that the former wins.

    Ties count half; the judge's gold decides, without a world the reward model's score. win_rate_ci: 95 % interval,
    answers to one prompt being dependent (intervals.share_interval); None where the reference meets itself, for then
    ½ is no estimate. {} without a judge or a reward model.
    """
    mine, theirs = assessed.worth, reference.worth
    if mine is None or theirs is None:
        return {}
    if assessed is reference:
        return {"win_rate": 0.5, "win_rate_ci": None}
    found = win_credits(assessed.by_prompt(mine), reference.by_prompt(theirs)).flatten()
    return {"win_rate": float(found.mean()), "win_rate_ci": share_interval(found, assessed.drawn.of)}
