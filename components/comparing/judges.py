"""Judges that need nobody: they rank the completions of a prompt.

A judge has one method, rank(prompt, completions, rng): prompt messages, completions texts that ended by themselves,
rng the only source of chance. It gives a rank for each, 0 the best, ties equal, none skipped; or None: not judged.
"""

import math
import random
from collections.abc import Callable, Sequence

from components.data.loading.fitting import fit_answers
from components.data.records.formats import Message
from components.evaluation.measure.policy import TOKENS_AT_ONCE, Responses, scores
from components.models.heads import ScalarModel
from components.tokenizer.tokenizer import Tokenizer
from components.world.world import World


class WorldJudge:
    """The judge of the built-in world, who knows the facts.

    noise: probability that a record's ranking is turned round, ties staying ties: any pair of different worth is
    then ranked wrongly with just this probability, independently between records, together within one.
    world: None where the prompts are not the world's. Raises ValueError for that, or a noise that is not 0 … 1.
    """

    def __init__(self, *, world: World | None, noise: float) -> None:
        if world is None:
            raise ValueError(
                "judge=world knows the built-in world's questions only, and these prompts are not its own. "
                "Use judge=reward (a reward model ranks) or judge=human (you rank)"
            )
        if not 0 <= noise <= 1:
            raise ValueError(f"judge.noise: got {noise}, expected a probability from 0 to 1")
        self.world, self.noise = world, noise

    def rank(self, prompt: list[Message], completions: Sequence[str], rng: random.Random) -> list[int]:
        ranks = dense([-gold(self.world, prompt, completion) for completion in completions])
        turned = rng.random() < self.noise
        return [max(ranks) - rank for rank in ranks] if turned else ranks


class RewardJudge:
    """A reward model that ranks by its scores.

    temperature T: 0 takes the order of the scores; above, the ranking is drawn: the best with probability
    ∝ exp(score / T), then the best of the others, and so on, so that of two completions one is ranked above the other
    with probability σ(difference / T). At T = 1 the judge errs as often as the model expects to.
    Equal completions have equal ranks. reward: builds the model. hold: puts it where it computes. tokens_at_once: that
    it reads together.
    Raises ValueError for a negative temperature and for scores that are not numbers.
    Source: Plackett 1975; Luce 1959; of pairs Bradley & Terry 1952.
    """

    def __init__(
        self,
        *,
        reward: Callable[[], ScalarModel],
        tokenizer: Tokenizer,
        hold: Callable[[ScalarModel], ScalarModel],
        temperature: float,
        tokens_at_once: int = TOKENS_AT_ONCE,
    ) -> None:
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"judge.temperature: got {temperature}, expected a number from 0 up")
        self.model, self.tokenizer, self.temperature = hold(reward()), tokenizer, temperature
        self.tokens_at_once = tokens_at_once

    def rank(self, prompt: list[Message], completions: Sequence[str], rng: random.Random) -> list[int]:
        different = list(dict.fromkeys(completions))
        found = self.scores(prompt, different)
        places = drawn_ranks(found, self.temperature, rng) if self.temperature else dense([-one for one in found])
        rank_of = dict(zip(different, places, strict=True))
        return dense([rank_of[completion] for completion in completions])

    def scores(self, prompt: list[Message], completions: Sequence[str]) -> list[float]:
        """Scores of completions, read as reward-model training reads them: cut to the context by the same rule."""
        context = self.model.config.longest
        made = fit_answers(self.tokenizer, prompt, completions, context)
        read = Responses(made.answers, list(completions), made.finished, [0] * len(completions))
        reading = {"pad_id": self.tokenizer.pad_id, "tokens_at_once": self.tokens_at_once}
        return scores(self.model, [made.prompt], read, **reading).tolist()


def gold(world: World, prompt: list[Message], completion: str) -> float:
    """What a completion that ended by itself is truly worth as an answer to the last message."""
    return world.judge(prompt[-1]["content"], completion, True).gold


def dense(values: Sequence[float]) -> list[int]:
    """Ranks of values, 0 the lowest; equal values, equal rank; no rank is skipped."""
    order = {value: place for place, value in enumerate(sorted(set(values)))}
    return [order[value] for value in values]


def drawn_ranks(values: Sequence[float], temperature: float, rng: random.Random) -> list[int]:
    """Ranks drawn by Plackett–Luce from exp(values / temperature), 0 the best; no ties."""
    left, ranks = list(range(len(values))), [0] * len(values)
    for place in range(len(values)):
        highest = max(values[item] for item in left)
        weights = [math.exp((values[item] - highest) / temperature) for item in left]
        chosen = rng.choices(left, weights)[0]
        ranks[chosen] = place
        left.remove(chosen)
    return ranks
