"""PPO finds the exact optimum of a task that can be enumerated, and a PPO with a mistake in it does not.

Ten ids: padding, the beginning, four that end a response, four letters. An answer of at most two letters is worth what
a table says, most of it by its first letter, so every token has to be credited correctly: the first for the letter, the
next for the second or for ending, the KL for staying near the reference. The check is one number, computed from all 510
responses; the mistakes below, each in one sign or one position, fail it.
"""

import random
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from components.evaluation.studies.exact_optimum import Task, measure
from components.functional.masking import true_places
from components.generation.generate import Sampling
from components.rewards.table_reward import TableReward, reward_automaton
from components.stages.ppo import PPO
from components.training.schedules import schedule
from tests.kit.tiny_stages import BOS, adam, causal, fit_prompts, ppo, scalar

ENDS, LETTERS, VOCABULARY = (2, 3, 4, 5), "abcd", 10
SPELLINGS = [b""] * 6 + [letter.encode() for letter in LETTERS]
PROMPTS = [[BOS, 6], [BOS, 7]]
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
TASK = Task(beta=0.5, max_new_tokens=3, missing_end_score=-3.0, stop_ids=ENDS, vocabulary=VOCABULARY)
REACHED = 0.95


def rewards() -> TableReward:
    """A first letter (or none) is worth N(0, 1.5), the whole answer N(0, 1) more."""
    rng = random.Random(0)
    tables = []
    for _ in PROMPTS:
        opening = {first: rng.gauss(0, 1.5) for first in ("", *LETTERS)}
        answers = ["".join(letters) for length in range(3) for letters in product(LETTERS, repeat=length)]
        tables.append({answer: opening[answer[:1]] + rng.gauss(0, 1) for answer in answers})
    return reward_automaton(PROMPTS, tables, SPELLINGS, other=TASK.missing_end_score)


def fraction_reached_by(kind: type[PPO]) -> float:
    """Of the optimum, after 200 updates on 100 rollouts of 64 responses to each prompt."""
    torch.manual_seed(0)
    stage = ppo(
        kind,
        policy=partial(causal, 0, **SHAPE),
        value=partial(scalar, 1, **SHAPE),
        reward=rewards,
        optimizer=adam(3e-3),
        value_lr=3e-3,
        schedule=partial(schedule, "linear", warmup_steps=0, final_fraction=0.0),
        sampling=Sampling(TASK.max_new_tokens),
        stop_ids=ENDS,
        beta=TASK.beta,
        lam=1.0,
        minibatches=1,
        value_clip=None,
        score_scale=1.0,
        samples_per_prompt=64,
    )
    asked = [{"ids": ids, "prompt": "", "reference": None} for ids in PROMPTS]
    fit_prompts(stage, 200, prompts=asked, per_rollout=len(asked), gradient_clip_val=1.0)
    found = measure(causal(0, **SHAPE).eval(), {"ppo": stage.policy.eval()}, rewards(), PROMPTS, TASK)
    return found["methods"]["ppo"]["fraction_of_optimum"]


@pytest.mark.slow
def test_ppo_reaches_the_optimum():
    assert REACHED < fraction_reached_by(PPO) < 1


def earlier(x: Tensor) -> Tensor:
    """Each position gets the next one's value."""
    return pad(x, (0, 1))[:, 1:]


def later(x: Tensor) -> Tensor:
    """Each position gets the previous one's value."""
    return pad(x, (1, 0))[:, :-1]


class RewardsTheKL(PPO):
    """The sign of the KL term is flipped: distance from the reference is rewarded."""

    def advantages(self, known):
        return super().advantages(known._replace(kl=-known.kl))


class CreditsTheTokenBefore(PPO):
    """GAE is off by one: a token learns from the advantage of the next."""

    def advantages(self, known):
        found = super().advantages(known)
        return found._replace(advantages=earlier(found.advantages))


class CreditsTheTokenAfter(PPO):
    """GAE is off by one in the other direction."""

    def advantages(self, known):
        found = super().advantages(known)
        return found._replace(advantages=later(found.advantages))


class MasksTheFirstToken(PPO):
    """The response mask is shifted by one: the first token is not learned, padding after the last one is."""

    def compute_loss(self, batch):
        mask = later(batch.mask)
        return super().compute_loss(batch._replace(packed=batch.packed._replace(mask=mask, real=true_places(mask))))


class MasksTheLastToken(PPO):
    """The response mask is shifted by one in the other direction: ends are not learned."""

    def compute_loss(self, batch):
        return super().compute_loss(batch._replace(packed=batch.packed._replace(mask=earlier(batch.mask))))


MISTAKES = (RewardsTheKL, CreditsTheTokenBefore, CreditsTheTokenAfter, MasksTheFirstToken, MasksTheLastToken)


@pytest.mark.slow
@pytest.mark.parametrize("mistaken", MISTAKES, ids=lambda kind: kind.__name__)
def test_a_wrong_sign_or_an_off_by_one_error_is_caught(mistaken):
    assert fraction_reached_by(mistaken) < REACHED - 0.15
