"""Over twenty steps one process and two, under DDP and in shards, have the same losses, stage by stage.

Two processes get half of every batch each. Where a stage draws what it learns from, one drawn experience is dealt to
the ranks, so that the trace compares learning and not luck: scores, scale, KL, advantages, whitening, and the
controller of beta are all computed anew, over the ranks.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy

from components.stages.grpo import GRPO
from components.stages.onpolicy import OnPolicy
from components.stages.ppo import PPO
from components.stages.pretrain import Pretrain
from components.stages.rejection import Rejection
from components.stages.rloo import RLOO
from components.stages.rm import RewardModel
from components.stages.sft import SFT
from components.stages.stage import Stage
from components.training.contract import LossOutput
from components.training.fsdp import FullySharded
from components.training.gradient_mean import GradientMean
from tests.kit.several import GivenResponses, Rollouts, together
from tests.kit.tiny_stages import (
    CONSTANT,
    END,
    PROMPTS,
    Batches,
    adam,
    causal,
    dpo,
    grpo,
    lm_batch,
    ppo,
    preference_batch,
    quiet_fit,
    rejection,
    rloo,
    scalar,
    trainer,
)

STEPS = 20
STRATEGIES: dict[str, Callable[[], Strategy]] = {"ddp": DDPStrategy, "fsdp": FullySharded}
Made = tuple[Stage, Any]


def tokens(draw: random.Random, most: int) -> list[int]:
    return [draw.randrange(3, 16) for _ in range(draw.randint(1, most))]


def document(draw: random.Random) -> tuple[list[int], list[int]]:
    return [1, *tokens(draw, 5)], [*tokens(draw, 9), END]


def ranking(draw: random.Random) -> tuple[list[int], list[list[int]], list[float]]:
    return [1, *tokens(draw, 4)], [[*tokens(draw, 6), END] for _ in range(3)], draw.sample([0.0, 1.0, 2.0], 3)


def dealt(drawn: Callable[[random.Random], Any], batch: Callable[[list], Any], world_size: int) -> Batches:
    """Twenty batches of six, of which two ranks get four and two."""
    draw = random.Random(7)
    steps = [[drawn(draw) for _ in range(6)] for _ in range(STEPS)]
    parts = [slice(0, 4), slice(4, 6)] if world_size == 2 else [slice(0, 6)]
    return Batches(*([batch(step[part]) for step in steps] for part in parts))


def language(kind: type[Stage]) -> Callable[[int], Made]:
    def make(world_size: int) -> Made:
        return kind(model=causal, schedule=CONSTANT, optimizer=adam(1e-3)), dealt(document, lm_batch, world_size)

    return make


def rm(world_size: int) -> Made:
    stage = RewardModel(model=scalar, schedule=CONSTANT, optimizer=adam(1e-3))
    return stage, dealt(ranking, preference_batch, world_size)


def from_comparisons(world_size: int) -> Made:
    return dpo(), dealt(ranking, preference_batch, world_size)


def from_rollouts(
    make: Callable[..., OnPolicy], kind: type[OnPolicy], *, samples: int = 2, **settings: Any
) -> Callable[[int], Made]:
    """Ten rollouts of two updates. The union of the ranks' n-th minibatches is the one process's n-th minibatch."""
    quarters = [PROMPTS[i : i + 2] for i in range(0, 8, 2)]
    ranks = [quarters[0] + quarters[1], quarters[2] + quarters[3]]
    one = quarters[0] + quarters[2] + quarters[1] + quarters[3]

    def stage_and_loader(world_size: int) -> Made:
        drawing = type(f"Given{kind.__name__}", (GivenResponses, kind), {})
        stage = make(drawing, epochs=1, minibatches=2, samples_per_prompt=samples, **settings)
        return stage, Rollouts(stage, *(ranks if world_size == 2 else [one]), count=STEPS // 2, updates=2)

    return stage_and_loader


MAKERS = {
    "pretrain": language(Pretrain),
    "sft": language(SFT),
    "rm": rm,
    "dpo": from_comparisons,
    "ppo": from_rollouts(ppo, PPO, kl_target=6.0, kl_horizon=50),
    # divides by a group's deviation: of two scores that are nearly equal it would be what they round to
    "grpo": from_rollouts(grpo, GRPO, samples=4),
    "dr_grpo": from_rollouts(grpo, GRPO, variant="dr_grpo"),
    "rloo": from_rollouts(rloo, RLOO),
    "rejection": from_rollouts(rejection, Rejection),
}


def trace(make: Callable[[int], Made], world_size: int, strategy: Callable[[], Strategy] | None) -> list:
    """(loss, weight) of this rank's part of every step."""
    stage, loader = make(world_size)
    kept, compute = [], stage.compute_loss

    def keep(batch: Any) -> LossOutput:
        output = compute(batch)
        kept.append((float(output.loss.detach()), output.weight))
        return output

    stage.compute_loss = keep
    several = {"strategy": strategy(), "devices": world_size} if strategy else {}
    run = trainer(max_steps=STEPS, limit_val_batches=0, gradient_clip_val=0.5, **several)
    quiet_fit(run, stage, loader, Batches([]))
    assert run.global_step == STEPS == len(kept)
    return kept


def joined(ranks: list[list]) -> torch.Tensor:
    """(STEPS,) losses over the batches of all ranks."""
    return torch.tensor(
        [
            sum(loss * weight for loss, weight in step) / sum(weight for _, weight in step)
            for step in zip(*ranks, strict=True)
        ],
        dtype=torch.float64,
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", MAKERS)
def test_twenty_steps_of_two_processes_have_the_losses_of_one(stage, tmp_path):
    make = MAKERS[stage]
    one = joined([trace(make, 1, None)])
    assert one.std() > 1e-3  # something is learned, or at least differs
    for name, strategy in STRATEGIES.items():
        ranks = together(lambda rank, strategy=strategy: trace(make, 2, strategy), tmp_path / name)
        assert ranks[0] != ranks[1]
        difference = float((joined(ranks) - one).abs().max())
        print(f"largest difference under {name}: {difference:.1e}")
        assert difference < 1e-5, name


def test_a_trace_shows_an_update_that_forgets_how_much_each_process_saw(tmp_path, monkeypatch):
    make = MAKERS["sft"]
    one = joined([trace(make, 1, None)])
    monkeypatch.setattr(GradientMean, "scaled", lambda self, terms, stage: sum(term.mean for term in terms))
    ranks = together(lambda rank: trace(make, 2, DDPStrategy), tmp_path)
    assert (joined(ranks) - one).abs().max() > 1e-4
