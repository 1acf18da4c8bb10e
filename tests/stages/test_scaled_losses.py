"""A backward pass begins with the loss times its share of the step and a scaler's scale. Nobody else sees either."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.optim import Optimizer

from components.callbacks.guards import NanGuard, SpikeGuard
from components.stages.sft import SFT
from components.training.checkpoint_io import AtomicCheckpointIO
from components.training.optimizers import adamw, muon
from tests.kit.micro_batches import with_text
from tests.kit.stage_runs import MAKERS
from tests.kit.tiny_stages import (
    CONSTANT,
    Batches,
    ListLogger,
    adam,
    causal,
    fit,
    lm_batch,
    quiet_fit,
    same_bits,
    trainer,
    weights,
)

ADAM: dict[str, Any] = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


class InFull(MixedPrecision):
    """Gradients scaled as for half precision, products in full: scaling by a power of two is exact."""

    def __init__(self, scale: float) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))

    def autocast_context_manager(self) -> torch.autocast:
        return torch.autocast("cpu", enabled=False)


class OverflowsOnce(InFull):
    """Its first backward pass begins with an infinite loss."""

    first = True

    def pre_backward(self, tensor: torch.Tensor, module: Any) -> torch.Tensor:
        scaled = super().pre_backward(tensor, module)
        first, self.first = self.first, False
        return scaled * float("inf") if first else scaled


def unfused(build: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """As it is with a scaler: a fused step rounds otherwise."""

    def built(named: Any) -> Optimizer:
        optimizer = build(named)
        for group in optimizer.param_groups:
            group["fused"] = False
        return optimizer

    return built


def trained(stage: str, optimizer: Any, *plugins: MixedPrecision) -> tuple[dict[str, torch.Tensor], ListLogger]:
    made, loader = MAKERS[stage](1)
    made.optimizer_builder = optimizer
    logger = ListLogger()
    settings = dict(max_steps=4, limit_val_batches=0, gradient_clip_val=0.1, logger=logger)
    quiet_fit(trainer(**settings, plugins=[AtomicCheckpointIO(), *plugins]), made, loader, Batches([]))
    return weights(made), logger


@pytest.mark.parametrize("optimizer", [partial(adamw, **ADAM), partial(muon, **ADAM)], ids=["adamw", "muon"])
@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_gradient_scaler_changes_neither_norms_nor_clipping_nor_steps(stage, optimizer):
    (plain, seen), (scaled, told) = trained(stage, unfused(optimizer)), trained(stage, optimizer, InFull(2.0**16))
    assert same_bits(plain, scaled)
    norms = {name for name in seen.logged if "grad_norm" in name}
    assert len(norms) == {"sft": 1, "ppo": 2}[stage]
    for name in norms:
        assert told[name] == seen[name]
    assert set(told["train/loss_scale"]) == {2.0**16} and "train/loss_scale" not in seen.logged


def test_a_step_that_the_scaler_skips_shows_only_in_its_scale(caplog):
    """Its norm is infinite, which says nothing about the gradient."""
    caplog.set_level(logging.INFO)
    _, logger = trained("sft", partial(adamw, **ADAM), OverflowsOnce(2.0**16))
    assert logger["train/loss_scale"] == [2.0**16, *[2.0**15] * 3]
    norms = dict(logger.logged["train/grad_norm"])
    assert len(norms) == 3 and 0 not in norms and all(torch.tensor(list(norms.values())).isfinite())
    assert len([line for line in caplog.messages if "the first step changed" in line]) == 1


def test_a_micro_batch_of_many_tokens_is_not_a_loss_spike():
    """After one of a single token, one of 60 weighs 60 times as much, and its loss does not."""
    short, *long = ([1], [3]), *(([1], [token] * 60) for token in range(3, 15))
    steps = [[document, document] for document in long] + [[short, long[0]]]
    guard = SpikeGuard("stop", window=8)
    stage = SFT(model=causal, optimizer=adam(0.0), schedule=CONSTANT)
    batches = [lm_batch([document]) for step in steps for document in step]
    run = fit(stage, batches, max_steps=13, accumulate_grad_batches=2, callbacks=[NanGuard(), guard])
    assert run.global_step == 13
    with torch.no_grad():
        losses = [float(stage.compute_loss(lm_batch([document])).loss) for document in (short, long[0])]
    assert guard.state_dict()["seen"][-1] == pytest.approx(max(losses), rel=1e-5)


def test_a_loss_of_several_terms_is_checked_unscaled_regardless_of_its_shares():
    guard = SpikeGuard("stop", window=8)
    stage, parts = with_text([1, 3])
    stage.optimizer_builder, stage.value_lr = adam(0.0), 0.0
    fit(stage, parts, max_steps=1, accumulate_grad_batches=2, callbacks=[guard])
    with torch.no_grad():
        losses = [float(stage.compute_loss(part).loss) for part in parts]
    assert guard.state_dict()["seen"] == [pytest.approx(max(losses), rel=1e-5)]


def test_a_micro_batch_without_anything_to_learn_has_no_loss_to_judge():
    guard = SpikeGuard("stop", window=8)
    stage = SFT(model=causal, optimizer=adam(0.0), schedule=CONSTANT)
    batches = [lm_batch([([1, 3], answer)]) for answer in ([4, 5], [], [], [])]
    fit(stage, batches, max_steps=2, accumulate_grad_batches=2, callbacks=[guard])
    assert len(guard.state_dict()["seen"]) == 1
