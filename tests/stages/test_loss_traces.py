"""Over twenty steps one process and two, under DDP and in shards, have the same losses, stage by stage."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy

from components.training.contract import LossOutput
from components.training.gradient_mean import GradientMean
from tests.kit.several import STRATEGIES, together
from tests.kit.stage_runs import MAKERS, STEPS, Made
from tests.kit.tiny_stages import Batches, quiet_fit, trainer


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
