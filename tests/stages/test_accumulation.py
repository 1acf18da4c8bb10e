"""Gradients are means over the tokens, prompts or pairs of the whole optimizer step, however it is split."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from components.stages.rm import RewardModel
from components.stages.sft import SFT
from tests.kit.micro_batches import KINDS, TIED, with_text
from tests.kit.tiny_stages import (
    CONSTANT,
    ListLogger,
    attached,
    causal,
    dpo,
    fit,
    gradient,
    keeper,
    lm_batch,
    preference_batch,
    scalar,
)


@functools.cache
def whole_gradient(kind: str) -> Tensor:
    return gradient(*KINDS[kind]([4]))


@pytest.mark.parametrize(
    "sizes", [[1, 3], *(pytest.param(one, marks=pytest.mark.slow) for one in ([2, 2], [1, 1, 1, 1]))], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_one_large_batch_is_that_of_its_micro_batches(kind, sizes):
    whole = whole_gradient(kind)
    stage, parts = KINDS[kind](sizes)
    attached(stage)
    assert len({int(stage.compute_loss(part).weight) for part in parts}) > 1  # unequal, or a mean of means would do
    assert whole.abs().max() > 1e-2
    assert (gradient(stage, parts) - whole).abs().max() < 2e-6 * max(1, whole.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_micro_batch_means_would_be_another_gradient(kind):
    stage, parts = KINDS[kind]([1, 1, 1, 1])
    stage.gradient_mean.scaled = lambda terms, stage: sum(term.mean for term in terms)
    assert (gradient(stage, parts) - whole_gradient(kind)).abs().max() > 1e-4


def test_a_loss_of_several_terms_with_unknown_weights_is_refused():
    stage, parts = with_text([1, 3])
    with pytest.raises(ValueError, match="loss of 2 terms"):
        gradient(stage, [part._replace(step_weights=None) for part in parts])


class Logged(ListLogger):
    """The latest value of every metric."""

    def latest(self):
        return {name: values[-1] for name, values in self.logged.items() if name.startswith("train/")}


@pytest.mark.parametrize("kind", KINDS)
def test_the_metrics_of_a_step_are_those_of_one_large_batch(kind):
    """Every metric has its own weight: tokens, pairs, prompts, responses or text tokens; maxima have none."""
    stages = {1: KINDS[kind]([4]), 3: KINDS[kind]([1, 1, 2])}
    found = []
    for count, (stage, parts) in stages.items():
        logger = Logged()
        fit(stage, parts, max_steps=1, accumulate_grad_batches=count, logger=logger)
        found.append(logger.latest())
    whole, cut = found
    assert whole.keys() == cut.keys() and len(whole) >= 4
    for name in whole:
        assert cut[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-6), name


def test_a_last_window_that_is_not_full_is_averaged_over_what_it_holds():
    """Three micro-batches and a step every two: the second step has one, which counts whole."""
    stage, parts = KINDS["sft"]([2, 1, 1])
    run = fit(stage, parts, max_epochs=1, accumulate_grad_batches=2)
    assert run.global_step == 2
    alone = gradient(*(KINDS["sft"]([2, 1, 1])[0], parts[2:]))
    assert (run.optimizers[0].kept - alone).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("stage", "batch"),
    [
        (SFT(model=causal, optimizer=keeper(), schedule=CONSTANT), lm_batch([([1, 3, 4], [])])),
        (RewardModel(model=scalar, optimizer=keeper(), schedule=CONSTANT), preference_batch([TIED])),
        (dpo(optimizer=keeper()), preference_batch([TIED])),
    ],
)
def test_a_batch_without_anything_to_learn_costs_nothing_and_teaches_nothing(stage, batch):
    output = attached(stage).compute_loss(batch)
    assert output.weight == 0
    assert output.loss == 0
    assert all(torch.isfinite(value) for value in output.metrics.values())
    assert (gradient(stage, [batch]) == 0).all()
    assert (gradient(stage, [batch, batch]) == 0).all()


class NothingRead(TorchDispatchMode):
    """Fails where a tensor's number is asked for, which on an accelerator would wait for all that is under way."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_the_shares_of_micro_batches_are_found_without_waiting_for_the_device(kind, monkeypatch):
    stage, parts = KINDS[kind]([1, 3])
    mean = stage.gradient_mean
    scaled, finish = mean.scaled, mean.finish

    def watched_scaled(terms: Any, stage: Any) -> Tensor:
        with NothingRead():
            return scaled(terms, stage)

    def watched_finish(stage: Any) -> None:
        with NothingRead():
            finish(stage)

    monkeypatch.setattr(mean, "scaled", watched_scaled)
    monkeypatch.setattr(mean, "finish", watched_finish)
    assert gradient(stage, parts).abs().max() > 1e-2
