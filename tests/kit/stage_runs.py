"""Every stage with twenty batches or ten rollouts, for one process or dealt to two.

Two processes get half of every batch each. Where a stage samples what it learns from, one given experience is dealt to
the ranks, so that a comparison is of learning and not of luck: scores, scale, KL, advantages, whitening, and the
controller of beta are all computed again, over the ranks.
"""

import random
from collections.abc import Callable
from typing import Any

from components.stages.distill import Distill
from components.stages.grpo import GRPO
from components.stages.ppo import PPO
from components.stages.pretrain import Pretrain
from components.stages.rejection import Rejection
from components.stages.rloo import RLOO
from components.stages.rm import RewardModel
from components.stages.rollouts import RolloutStage
from components.stages.sft import SFT
from components.stages.stage import Stage
from tests.kit.several import GivenResponses, Rollouts
from tests.kit.tiny_stages import (
    CONSTANT,
    END,
    PROMPTS,
    Batches,
    adam,
    causal,
    distill,
    dpo,
    grpo,
    kto,
    lm_batch,
    orpo,
    ppo,
    preference_batch,
    rejection,
    rloo,
    scalar,
    simpo,
    unpaired_batch,
)

STEPS = 20
Made = tuple[Stage, Any]


def tokens(rng: random.Random, most: int) -> list[int]:
    return [rng.randrange(3, 16) for _ in range(rng.randint(1, most))]


def document(rng: random.Random) -> tuple[list[int], list[int]]:
    return [1, *tokens(rng, 5)], [*tokens(rng, 9), END]


def ranking(rng: random.Random) -> tuple[list[int], list[list[int]], list[float]]:
    return [1, *tokens(rng, 4)], [[*tokens(rng, 6), END] for _ in range(3)], rng.sample([0.0, 1.0, 2.0], 3)


def labeled(rng: random.Random) -> tuple[list[int], list[int], bool, list[int]]:
    return [1, *tokens(rng, 4)], [*tokens(rng, 6), END], rng.random() < 0.5, [*tokens(rng, 6), END]


def dealt(sample: Callable[[random.Random], Any], batch: Callable[[list], Any], world_size: int) -> Batches:
    """Twenty batches of six, of which two ranks get four and two."""
    rng = random.Random(7)
    steps = [[sample(rng) for _ in range(6)] for _ in range(STEPS)]
    parts = [slice(0, 4), slice(4, 6)] if world_size == 2 else [slice(0, 6)]
    return Batches(*([batch(step[part]) for step in steps] for part in parts))


def language(kind: type[Stage]) -> Callable[[int], Made]:
    def make(world_size: int) -> Made:
        return kind(model=causal, schedule=CONSTANT, optimizer=adam(1e-3)), dealt(document, lm_batch, world_size)

    return make


def rm(world_size: int) -> Made:
    stage = RewardModel(model=scalar, schedule=CONSTANT, optimizer=adam(1e-3))
    return stage, dealt(ranking, preference_batch, world_size)


def from_comparisons(make: Callable[[], Stage]) -> Callable[[int], Made]:
    return lambda world_size: (make(), dealt(ranking, preference_batch, world_size))


def from_labels(world_size: int) -> Made:
    return kto(), dealt(labeled, unpaired_batch, world_size)


def from_rollouts(
    make: Callable[..., RolloutStage], kind: type[RolloutStage], *, samples: int = 2, **settings: Any
) -> Callable[[int], Made]:
    """Ten rollouts of two updates. The union of the ranks' n-th minibatches is the one process's n-th minibatch."""
    quarters = [PROMPTS[i : i + 2] for i in range(0, 8, 2)]
    ranks = [quarters[0] + quarters[1], quarters[2] + quarters[3]]
    one = quarters[0] + quarters[2] + quarters[1] + quarters[3]

    def stage_and_loader(world_size: int) -> Made:
        given = type(f"Given{kind.__name__}", (GivenResponses, kind), {})
        stage = make(given, epochs=1, minibatches=2, samples_per_prompt=samples, **settings)
        return stage, Rollouts(stage, *(ranks if world_size == 2 else [one]), count=STEPS // 2, updates=2)

    return stage_and_loader


MAKERS = {
    "pretrain": language(Pretrain),
    "sft": language(SFT),
    "rm": rm,
    "dpo": from_comparisons(dpo),
    "simpo": from_comparisons(simpo),
    "orpo": from_comparisons(orpo),
    "kto": from_labels,
    "ppo": from_rollouts(ppo, PPO, kl_target=6.0, kl_horizon=50),
    # divides by a group's deviation: of two scores that are nearly equal it would be what they round to
    "grpo": from_rollouts(grpo, GRPO, samples=4),
    "dr_grpo": from_rollouts(grpo, GRPO, variant="dr_grpo"),
    "rloo": from_rollouts(rloo, RLOO),
    "rejection": from_rollouts(rejection, Rejection),
    "distill": from_rollouts(distill, Distill),
}
