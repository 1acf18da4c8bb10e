"""Frozen means frozen, trained means changed, and a checkpoint contains what was trained."""

import pytest
import torch

from components.generation.generate import Sampling
from components.stages.stage import Stage
from tests.kit.tiny_stages import (
    adam,
    causal,
    distill,
    dpo,
    grpo,
    kto,
    ppo,
    quiet_fit,
    rejection,
    rloo,
    same_bits,
    scalar,
    trainer,
    weights,
)

MAKERS = {"dpo": dpo, "kto": kto, "ppo": ppo, "grpo": grpo, "rloo": rloo, "rejection": rejection}
MAKERS |= {"distill": distill}
OFFLINE = ("dpo", "kto")


def networks(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those that are frozen, and those that learn."""
    if name == "distill":
        return ("teacher",), ("policy",)
    return ("reference",) if name in OFFLINE else ("reference", "reward"), ("policy", "value")[: 1 + (name == "ppo")]


@pytest.fixture(params=MAKERS)
def trained(request, data, tmp_path) -> tuple[str, Stage, dict, dict]:
    """A stage after training with validations, its networks' weights before, and its checkpoint."""
    name, module = request.param, data(request.param)
    size = module.tokenizer.vocab_size
    settings = dict(policy=lambda: causal(0, size), optimizer=adam(1e-3, weight_decay=0.1))
    if name == "distill":
        settings |= dict(teacher=lambda: causal(5, size), stop_ids=module.tokenizer.stop_ids, sampling=Sampling(6))
    elif name not in OFFLINE:
        settings |= dict(reward=lambda: scalar(1, size), stop_ids=module.tokenizer.stop_ids, sampling=Sampling(6))
    if name == "ppo":
        settings |= dict(value=lambda: scalar(1, size))
    stage = MAKERS[name](**settings)
    stage.configure_model()
    before = {network: weights(getattr(stage, network)) for network in sum(networks(name), ())}
    run = trainer(max_steps=6, val_check_interval=2, check_val_every_n_epoch=None)
    quiet_fit(run, stage, datamodule=module)
    metric = "margin" if name in OFFLINE else "forward_kl" if name == "distill" else "score"
    assert f"val/{metric}" in run.callback_metrics
    run.save_checkpoint(tmp_path / "a.ckpt")
    return name, stage, before, run.strategy.checkpoint_io.load_checkpoint(tmp_path / "a.ckpt")


def test_training_moves_what_learns_and_leaves_reference_and_reward_to_the_bit(trained):
    name, stage, before, checkpoint = trained
    frozen, learning = networks(name)
    for part in frozen:
        network = getattr(stage, part)
        assert same_bits(before[part], weights(network)), part
        assert all(p.grad is None and not p.requires_grad for p in network.parameters()), part
        assert not any(module.training for module in network.modules()), part
    for part in learning:
        after = weights(getattr(stage, part))
        assert not any(torch.equal(before[part][key], after[key]) for key in after), part
        assert all(module.training for module in getattr(stage, part).modules()), part
    buffers = set() if name in (*OFFLINE, "distill") else {"beta", "score_scale"}
    assert {key.split(".")[0] for key in checkpoint["state_dict"]} == {*learning} | buffers


def test_frozen_networks_stay_in_eval_mode_in_any_mode_of_the_stage():
    stage = ppo()
    stage.configure_model()
    for mode in (True, False, True):
        stage.train(mode)
        assert stage.policy.training == stage.value.training == mode
        assert not stage.reference.training and not stage.reward.training


@pytest.mark.parametrize("name", MAKERS)
def test_no_two_networks_share_storage(name):
    stage = MAKERS[name]()
    stage.configure_model()
    places = [p.data_ptr() for part in sum(networks(name), ()) for p in getattr(stage, part).parameters()]
    assert len(places) == len(set(places)) > 0


@pytest.mark.parametrize("name", MAKERS)
def test_what_the_next_stage_receives_is_the_policy(name):
    stage = MAKERS[name]()
    stage.configure_model()
    assert stage.exportable() is stage.policy


def test_building_the_models_twice_builds_them_once():
    stage = ppo()
    stage.configure_model()
    built = dict(stage.named_children())
    stage.configure_model()
    assert dict(stage.named_children()) == built and set(built) == {"policy", "value", "reference", "reward"}
