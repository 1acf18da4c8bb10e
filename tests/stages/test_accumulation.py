"""Gradients are means over the tokens, prompts or pairs of the whole optimizer step, however it is split."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from components.stages.onpolicy import OnPolicy
from components.stages.pretrain import Pretrain
from components.stages.rm import RewardModel
from components.stages.sft import SFT
from tests.kit.tiny_stages import (
    CONSTANT,
    END,
    PROMPTS,
    ListLogger,
    Mixed,
    attached,
    causal,
    dpo,
    fit,
    gradient,
    grpo,
    keeper,
    lm_batch,
    ppo,
    preference_batch,
    rejection,
    rloo,
    scalar,
)

OF_ROWS = ("input_ids", "positions", "segments", "parents", "sources", "last")  # what packing adds to experience
SHARES = (1, 1, 2, 4)  # of eight prompts' responses: unequal, also where every response weighs the same
DOCUMENTS = [([1, 3], [4, 5, 6, 7, 8, 9, 10, END]), ([1], [5, END]), ([1, 2, 3], [11, END]), ([1, 9], [END])]
TIED = ([1, 4], [[5, END], [6, END]], [1.0, 1.0])  # no pair, no weight
RANKINGS = [
    ([1, 3], [[5, END], [6, 6, END], [7, END]], [0.0, 1.0, 2.0]),
    ([1, 8], [[9, END], [10, END]], [1.0, 0.0]),
    TIED,
    ([1, 4, 4], [[11, END], [12, 3, END]], [0.0, 1.0]),
]


def language(kind):
    def cut(sizes):
        stage = kind(model=causal, optimizer=keeper(), schedule=CONSTANT)
        parts = torch.arange(4).split(sizes)
        return stage, [lm_batch([DOCUMENTS[i] for i in part], row_length=16) for part in parts]

    return cut


def ranking(sizes):
    stage = RewardModel(model=scalar, optimizer=keeper(), schedule=CONSTANT)
    parts = torch.arange(4).split(sizes)
    return stage, [preference_batch([RANKINGS[i] for i in part], row_length=32) for part in parts]


def preferring(sizes):
    parts = torch.arange(4).split(sizes)
    return dpo(optimizer=keeper()), [preference_batch([RANKINGS[i] for i in part], row_length=32) for part in parts]


def experience(make, **settings):
    """One rollout cut in order; its old log-probabilities are made to differ from the policy's."""

    def cut(sizes):
        source = attached(make(epochs=1, minibatches=1, **settings))
        [whole] = source.collect(PROMPTS, 0)
        known = {name: tensor for name, tensor in whole.items() if name not in OF_ROWS}
        noise = torch.randn(known["mask"].shape, generator=torch.Generator().manual_seed(0))
        known["old_logprobs"] = known["old_logprobs"] + 0.3 * noise * known["mask"]
        each = len(known["mask"]) // len(PROMPTS)
        prompts = [prompt["ids"] for prompt in PROMPTS for _ in range(each)]
        items = torch.arange(len(prompts)).split([each * share for share in SHARES])
        parts = []
        for numbers in torch.arange(4).split(sizes):
            rows = torch.cat([items[i] for i in numbers])
            part = {name: tensor[rows] for name, tensor in known.items()}
            parts += OnPolicy.split(source, [prompts[i] for i in rows], part, 0)
        return make(optimizer=keeper(), **settings), parts

    return cut


def with_text(sizes):
    """PPO-ptx: the text's share of tokens differs between micro-batches, and from that of the responses."""
    _, parts = experience(ppo)(sizes)
    texts = [lm_batch([DOCUMENTS[i] for i in part], row_length=16) for part in torch.arange(4).split(sizes)]
    weights = torch.stack([torch.stack([p["mask"].sum(), t.mask.sum()]) for p, t in zip(parts, texts)]).sum(0)
    mixed = [{**part, "pretraining": text, "step_weights": weights} for part, text in zip(parts, texts)]
    return ppo(Mixed, optimizer=keeper(), pretraining_coefficient=27.8), mixed


KINDS = {
    "pretrain": language(Pretrain),
    "sft": language(SFT),
    "rm": ranking,
    "dpo": preferring,
    "ppo": experience(ppo),
    "ppo_ptx": with_text,
    **{variant: experience(grpo, variant=variant, samples_per_prompt=2) for variant in ("grpo", "dapo", "dr_grpo")},
    "rloo": experience(rloo, samples_per_prompt=2),
    "rejection": experience(rejection, samples_per_prompt=2),
}


@functools.cache
def whole_gradient(kind: str) -> Tensor:
    return gradient(*KINDS[kind]([4]))


@pytest.mark.parametrize("sizes", [[1, 3], [2, 2], [1, 1, 1, 1]], ids=str)
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
        gradient(stage, [{name: value for name, value in part.items() if name != "step_weights"} for part in parts])


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
