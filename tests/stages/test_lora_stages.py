"""Stages with adapters: one trunk for all networks, adapters alone in the checkpoint, and the same start."""

import math
from functools import partial

import pytest
import torch

from components.generation.generate import Sampling
from components.models.lora import TARGETS, LoRA
from components.stages.stage import Stage
from components.training import recomputing
from components.training.contract import RunContext
from components.training.self_checks import SelfCheckError
from tests.kit.tiny_stages import adam, causal, distill, dpo, kto, ppo, quiet_fit, same_bits, scalar, trainer, weights

LORA = LoRA(rank=2, alpha=4.0, dropout=0.0, targets=TARGETS)


def adapted(name: str, module, lora: LoRA = LORA, **run) -> Stage:
    size = module.tokenizer.vocab_size
    settings = dict(policy=lambda: causal(0, size), optimizer=adam(1e-2))
    if name == "distill":
        settings |= dict(teacher=lambda: causal(5, size), stop_ids=module.tokenizer.stop_ids, sampling=Sampling(6))
    if name == "ppo":
        score = partial(scalar, 1, size)
        settings |= dict(reward=score, value=score, stop_ids=module.tokenizer.stop_ids, sampling=Sampling(6))
    return {"distill": distill, "dpo": dpo, "kto": kto, "ppo": ppo}[name](**settings, run=RunContext(lora=lora, **run))


@pytest.fixture(params=["dpo", "kto", "ppo"])
def trained(request, data, tmp_path):
    """A stage after training, its trunks' weights before, and its checkpoint."""
    module = data(request.param)
    stage = adapted(request.param, module)
    stage.configure_model()
    before = {name: weights(network.model) for name, network in stage.named_children() if hasattr(network, "adapters")}
    run = trainer(max_steps=4)
    quiet_fit(run, stage, datamodule=module)
    run.save_checkpoint(tmp_path / "a.ckpt")
    return request.param, stage, before, run.strategy.checkpoint_io.load_checkpoint(tmp_path / "a.ckpt")


def test_every_network_uses_one_trunk_of_its_kind_and_no_trunk_changes(trained):
    name, stage, before, _ = trained
    assert stage.reference.model is stage.policy.model and stage.reference.adapters is None
    if name == "ppo":
        assert stage.value.model is stage.reward.model
        assert stage.value.score is not stage.reward.score
    for network, trunk in before.items():
        assert same_bits(trunk, weights(getattr(stage, network).model)), network
    assert any(p.abs().sum() > 0 for n, p in stage.policy.adapters.named_parameters() if n.endswith("up"))


def test_a_checkpoint_contains_only_adapters_and_a_trained_head(trained):
    name, stage, _, checkpoint = trained
    trained_names = {n for n, p in stage.named_parameters() if p.requires_grad}
    saved = {n for n in checkpoint["state_dict"] if n.split(".")[0] in ("policy", "value", "reference", "reward")}
    assert saved == trained_names
    heads = {"value.score.weight", "value.score.bias"} if name == "ppo" else set()
    assert {n for n in saved if ".adapters." not in n} == heads


@pytest.mark.parametrize("name", ["dpo", "kto", "ppo", "distill"])
def test_a_resumed_run_ends_like_an_uninterrupted_one(name, data, tmp_path):
    ends = []
    for stops in ((6,), (3, 6)):
        checkpoint = None
        for stop in stops:
            module = data(name)
            stage = adapted(name, module)
            stage.schedule = lambda step, total_steps: 1.0
            run = trainer(max_steps=stop)
            quiet_fit(run, stage, datamodule=module, ckpt_path=checkpoint)
            checkpoint = tmp_path / f"{name}{len(stops)}{stop}.ckpt"
            run.save_checkpoint(checkpoint)
        ends.append({n: p.detach().clone() for n, p in stage.named_parameters() if p.requires_grad})
    assert same_bits(*ends)


def test_dropout_on_adapters_is_refused_where_two_forwards_are_compared(data):
    module = data("ppo")
    stage = adapted("ppo", module, LoRA(rank=2, alpha=4.0, dropout=0.1, targets=TARGETS))
    with pytest.raises(SelfCheckError, match="dropout"):
        quiet_fit(trainer(max_steps=1), stage, datamodule=module)


def test_training_with_recomputed_layers_is_the_same_to_the_bit(data):
    ends = []
    for recompute in (False, True):
        torch.manual_seed(0)
        module = data("dpo")
        stage = adapted("dpo", module, gradient_checkpointing=recompute)
        quiet_fit(trainer(max_steps=3), stage, datamodule=module)
        assert stage.policy.model.recompute == recompute
        ends.append(weights(stage.policy.adapters))
    assert same_bits(*ends)


def test_auto_recomputes_layers_only_if_a_step_would_not_fit_with_the_same_result(data, monkeypatch):
    ends = []
    for free, recomputes in ((math.inf, False), (1000.0, True)):
        monkeypatch.setattr(recomputing, "free_memory", lambda device, free=free: free)
        torch.manual_seed(0)
        stage = adapted("ppo", data("ppo"), gradient_checkpointing="auto")
        quiet_fit(trainer(max_steps=2), stage, datamodule=data("ppo"))
        assert {network.model.recompute for network in stage.networks().values()} == {recomputes}
        assert ("layers are recomputed" in stage.memory) == recomputes
        ends.append(weights(stage.policy.adapters))
    assert same_bits(*ends)
