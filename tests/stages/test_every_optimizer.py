"""Each trainable parameter moves: with every optimizer, on every stage, under every strategy."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from components.models.lora import TARGETS, LoRA
from components.stages.stage import Stage
from components.training.optimizers import adamw, adamw8bit, muon
from tests.kit.several import STRATEGIES, together
from tests.kit.stage_runs import MAKERS
from tests.kit.tiny_stages import Batches, quiet_fit, trainer

ADAM: dict[str, Any] = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(adamw, **ADAM),
    "muon": partial(muon, **ADAM),
    "torch's own": partial(torch.optim.SGD, lr=0.1),
}
ON_ONE_DEVICE = {"adamw8bit": partial(adamw8bit, **ADAM)}  # it cannot be sharded
LORA = LoRA(rank=2, alpha=4.0, dropout=0.0, targets=TARGETS)
NETWORKS = ("sft", "rm", "ppo")  # stages that train a language model, one with a scalar head, and both
UNSEEN = {"model.score.bias"}  # by the reward model's loss, which compares scores: its gradient is 0 up to rounding
STEPS = 3  # an adapter's A has no gradient before its B has moved


def local(stage: Stage) -> dict[str, Tensor]:
    """This process's part of the trained parameters."""
    parts = {name: p.to_local() if hasattr(p, "to_local") else p for name, p in stage.named_groups()}
    return {name: part.detach().clone() for name, part in parts.items()}


def unmoved(make: Callable[[int], tuple], optimizer: Any, way: tuple[str | None, int], lora: LoRA | None) -> list[str]:
    strategy, processes = way
    stage, loader = make(processes)
    stage.optimizer_builder, stage.run = optimizer, replace(stage.run, lora=lora)
    before: dict[str, Tensor] = {}
    start = stage.on_train_start
    stage.on_train_start = lambda: (before.update(local(stage)), start())[1]
    several = {"strategy": STRATEGIES[strategy](), "devices": processes} if strategy else {}
    quiet_fit(trainer(max_steps=STEPS, limit_val_batches=0, **several), stage, loader, Batches([]))
    after = {name: now for name, now in local(stage).items() if now.numel() and name not in UNSEEN}
    return [name for name, now in after.items() if torch.equal(now, before[name])]


@pytest.mark.parametrize(
    ("stage", "optimizer"),
    [
        pytest.param(s, o, marks=() if o == "adamw" or s in NETWORKS else pytest.mark.slow)
        for s in MAKERS
        for o in (*OPTIMIZERS, *ON_ONE_DEVICE)
    ],
)
def test_in_one_process(stage, optimizer):
    assert unmoved(MAKERS[stage], (OPTIMIZERS | ON_ONE_DEVICE)[optimizer], (None, 1), None) == []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stage", NETWORKS)
def test_with_adapters(stage, optimizer):
    assert unmoved(MAKERS[stage], OPTIMIZERS[optimizer], (None, 1), LORA) == []


@pytest.mark.slow
@pytest.mark.parametrize("way", [("ddp", 2), ("fsdp", 1), ("fsdp", 2)], ids=str)
def test_in_several_processes(way, tmp_path):
    """Every stage with AdamW, and every network with the other optimizers, which see its parameters or their shards
    whatever the loss is."""

    def work(rank: int) -> dict[str, list[str]]:
        return {
            f"{stage} with {name}": found
            for stage, make in MAKERS.items()
            for name, optimizer in OPTIMIZERS.items()
            if (name == "adamw" or stage in NETWORKS) and (found := unmoved(make, optimizer, way, None))
        }

    assert together(work, tmp_path, way[1]) == [{}] * way[1]
