"""Stages whose policy has rows without a token: −inf in sampling and in training, so ratios start at 1."""

import math

import pytest
import torch

from components.generation.generate import Sampling, generate
from components.generation.responses import response_logprobs
from components.models.lora import LoRA
from tests.kit.tiny_stages import PROMPTS, ListLogger, attached, causal, fit_prompts, grpo, ppo, rejection, rloo

UNUSED = (3, 14, 15)  # two at the end of the sixteen ids, one in between


def tiny(**changes):
    """A policy on sixteen ids of which three are no tokens, with the largest logits there are."""
    model = causal(unused_ids=UNUSED, **changes)
    with torch.no_grad():  # ±20 times the sum of the hidden state: one of them is above all others
        model.lm_head.weight[list(UNUSED)] = torch.tensor([[20.0], [-20.0], [20.0]]).expand(-1, 32)
    return model


REAL = [prompt for prompt in PROMPTS if not set(UNUSED) & set(prompt["ids"])]


@pytest.mark.parametrize("make", [ppo, grpo, rloo])
def test_the_first_ratio_is_exactly_1_and_the_first_kl_exactly_0(make):
    stage = attached(make(policy=tiny))
    batch = stage.collect(REAL, 0)[0]
    sampled = batch.packed.response_ids[batch.mask]
    assert not set(UNUSED) & set(sampled.tolist())
    assert batch.old_logprobs.isfinite().all()
    assert torch.equal(batch.old_logprobs, batch.reference_logprobs)
    again, _ = response_logprobs(stage.policy, batch.packed, temperature=1.0)
    assert torch.equal(again.detach(), batch.old_logprobs)
    # what is sampled from is what is trained: the probabilities of the real ids alone sum to 1
    with torch.no_grad():
        p = stage.policy(torch.tensor([REAL[0]["ids"]]))[0, -1].softmax(-1)
    assert float(p[list(UNUSED)].sum()) == 0 and float(p.sum()) == pytest.approx(1)


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 1e-38, 1e-46, 5e-324])
def test_at_any_low_temperature_the_likeliest_id_with_a_token_is_sampled(temperature):
    """Logits divided by it overflow, and a distribution of NaN must not select the last id."""
    model, generator = tiny(), torch.Generator().manual_seed(0)
    settings = dict(stop_ids=(), pad_id=0, generator=generator)
    for more in ({}, {"top_k": 5}, {"top_p": 0.9}):
        warm = generate(model, [[1, 4]], Sampling(6, temperature, **more), **settings)
        assert warm.responses() == generate(model, [[1, 4]], Sampling(6, 0.0), **settings).responses()


@pytest.mark.parametrize("make", [ppo, grpo, rejection])
def test_training_on_a_padded_vocabulary_keeps_every_metric_finite(make):
    logged = ListLogger()
    fit_prompts(make(policy=tiny), 4, prompts=REAL, per_rollout=4, logger=logged)
    assert all(math.isfinite(value) for values in logged.logged.values() for _, value in values)


def test_the_rows_of_ids_without_a_token_change_by_weight_decay_only():
    stage = attached(ppo(policy=tiny))
    loss = stage.compute_loss(stage.collect(REAL, 0)[0]).loss
    (gradient,) = torch.autograd.grad(loss, stage.policy.lm_head.weight)
    assert not gradient[list(UNUSED)].any() and gradient[[2, 4, 5]].any()


def test_a_fork_and_the_model_without_adapters_know_the_ids_too():
    model = tiny()
    model.adapt(LoRA(rank=2, alpha=4, dropout=0.0, targets=["q_proj"]))
    for twin in (model.bare(), model.fork()):
        with torch.no_grad():
            assert (twin(torch.tensor([[4, 5]]))[..., list(UNUSED)] == -math.inf).all()
