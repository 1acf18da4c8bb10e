"""Automatic judges, which rank the completions of a prompt.

A judge has one method, rank(prompt, completions, rng, columns): prompt is messages, completions are finished texts, rng
is the only source of randomness, and columns are the other fields of the prompt's record. It returns dense ranks, 0 is
best, ties are equal; or None: not judged.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from components.data.loading.fitting import fit_answers
from components.data.records.formats import Message
from components.evaluation.measure.policy import TOKENS_AT_ONCE, Responses, scores
from components.models.heads import ScalarModel
from components.rewards.function_call import Answered
from components.rewards.functions import FunctionReward, OnTimeout
from components.system.limits import NonNegativeInt, Positive
from components.tokenizer.tokenizer import Tokenizer
from components.world.world import World

Columns = Mapping[str, Any]
NO_COLUMNS: Columns = MappingProxyType({})


class WorldJudge:
    """The judge of the built-in world, who knows the facts.

    noise: probability that a record's ranking is reversed, with ties staying ties: any pair of different worth is then
    ranked wrongly with exactly this probability, independently across records, jointly within one.
    temperature: as RewardJudge has it, with the true worth as the score.
    world: None if the prompts are not the world's. Raises ValueError for that, if noise is not in 0..1, or for a
    negative temperature.
    """

    def __init__(self, *, world: World | None, noise: float, temperature: float = 0.0) -> None:
        if world is None:
            raise ValueError(
                "judge=world knows only the built-in world's questions, and these prompts are not among them. "
                "Use judge=function (Python functions rank), judge=reward (a reward model) or judge=human (you)"
            )
        if not 0 <= noise <= 1:
            raise ValueError(f"judge.noise: got {noise}, expected a probability from 0 to 1")
        self.world, self.noise, self.temperature = world, noise, _temperature(temperature)

    def rank(
        self, prompt: list[Message], completions: Sequence[str], rng: random.Random, columns: Columns = NO_COLUMNS
    ) -> list[int]:
        worth = {completion: gold(self.world, prompt, completion) for completion in completions}
        ranks = _ranks(completions, worth, self.temperature, rng)
        reverse = rng.random() < self.noise
        return [max(ranks) - rank for rank in ranks] if reverse else ranks


class RewardJudge:
    """A reward model that ranks by its scores.

    temperature T: 0 ranks by score; above 0, the ranking is sampled: the best with probability ∝ exp(score / T), then
    the best of the others, and so on, which ranks one of two completions above the other with probability
    σ(difference / T). At T = 1 the judge errs as often as the model expects to.
    Equal completions have equal ranks. reward: builds the model. to_device: moves it to its device. tokens_at_once: how
    many tokens it reads at once.
    Raises ValueError for a negative temperature and for scores that are not numbers.
    Source: Plackett 1975; Luce 1959; for pairs, Bradley & Terry 1952.
    """

    def __init__(
        self,
        *,
        reward: Callable[[], ScalarModel],
        tokenizer: Tokenizer,
        to_device: Callable[[ScalarModel], ScalarModel],
        temperature: float,
        tokens_at_once: int = TOKENS_AT_ONCE,
    ) -> None:
        self.temperature = _temperature(temperature)
        self.model, self.tokenizer = to_device(reward()), tokenizer
        self.tokens_at_once = tokens_at_once

    def rank(
        self, prompt: list[Message], completions: Sequence[str], rng: random.Random, columns: Columns = NO_COLUMNS
    ) -> list[int]:
        different = list(dict.fromkeys(completions))
        scores = dict(zip(different, self.scores(prompt, different), strict=True))
        return _ranks(completions, scores, self.temperature, rng)

    def scores(self, prompt: list[Message], completions: Sequence[str]) -> list[float]:
        """Scores of completions, read as reward-model training reads them: cut to the context by the same rule."""
        context = self.model.config.longest
        made = fit_answers(self.tokenizer, prompt, completions, context)
        read = Responses(made.answers, list(completions), made.finished, [0] * len(completions))
        reading = {"pad_id": self.tokenizer.pad_id, "tokens_at_once": self.tokens_at_once}
        return scores(self.model, [made.prompt], read, **reading).tolist()


class FunctionJudge:
    """Ranks by the weighted sum of reward functions, see components.rewards.functions.FunctionReward.

    A completion is a response that ended by itself. Raises RewardError for a function that does not exist, and as
    the reward does.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        path: str | None = None,
        functions: dict[str, Any] | None = None,
        arguments: dict[str, Any] | None = None,
        timeout: Positive | None = None,
        processes: NonNegativeInt = 0,
        on_timeout: OnTimeout = "error",
    ) -> None:
        named = {"path": path, "functions": functions, "arguments": arguments}
        how = {"timeout": timeout, "processes": processes, "on_timeout": on_timeout}
        self.reward, self.tokenizer = FunctionReward.of(named | how, "judge"), tokenizer

    def rank(
        self, prompt: list[Message], completions: Sequence[str], rng: random.Random, columns: Columns = NO_COLUMNS
    ) -> list[int]:
        count = len(completions)
        answered = Answered(
            [prompt] * count,
            list(completions),
            [self.tokenizer.encode(completion) for completion in completions],
            [True] * count,
            {name: [value] * count for name, value in columns.items()},
        )
        return dense([-score for score in self.reward.totals(self.reward.values(answered), answered)])


def gold(world: World, prompt: list[Message], completion: str) -> float:
    """The true worth of a finished completion as an answer to the last message."""
    return world.judge(prompt[-1]["content"], completion, True).gold


def _temperature(given: float) -> float:
    if not (math.isfinite(given) and given >= 0):
        raise ValueError(f"judge.temperature: got {given}, expected a number of at least 0")
    return given


def _ranks(
    completions: Sequence[str], scores: Mapping[str, float], temperature: float, rng: random.Random
) -> list[int]:
    """Dense ranks of completions by their scores, sampled if temperature is above 0; equal completions tie."""
    if not temperature:
        return dense([-scores[completion] for completion in completions])
    rank_of = dict(zip(scores, sampled_ranks(list(scores.values()), temperature, rng), strict=True))
    return dense([rank_of[completion] for completion in completions])


def dense(values: Sequence[float]) -> list[int]:
    """Dense ranks of values, 0 is the lowest: equal values have equal ranks, and no rank is skipped."""
    rank_of = {value: rank for rank, value in enumerate(sorted(set(values)))}
    return [rank_of[value] for value in values]


def sampled_ranks(values: Sequence[float], temperature: float, rng: random.Random) -> list[int]:
    """Plackett–Luce ranks, sampled with weights exp(values / temperature), 0 is best; no ties."""
    left, ranks = list(range(len(values))), [0] * len(values)
    for rank in range(len(values)):
        highest = max(values[i] for i in left)
        weights = [math.exp((values[i] - highest) / temperature) for i in left]
        chosen = rng.choices(left, weights)[0]
        ranks[chosen] = rank
        left.remove(chosen)
    return ranks
