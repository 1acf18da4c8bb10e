"""Frozen means frozen, trained means moved, and a checkpoint holds what was trained."""

import pytest
import torch
from tiny_stages import adam, causal, ppo, quiet_fit, same_bits, scalar, trainer, weights

from components.generation.generate import Sampling
from components.stages.ppo import PPO

FROZEN, TRAINED = ("reference", "reward"), ("policy", "value")


@pytest.fixture
def trained(data, tmp_path) -> tuple[PPO, dict, dict]:
    """A stage after training with validations, its networks' weights before, and its checkpoint."""
    module = data("ppo")
    size = module.tokenizer.vocab_size
    stage = ppo(
        policy=lambda: causal(0, size), reward=lambda: scalar(1, size), value=lambda: scalar(1, size),
        stop_ids=module.tokenizer.stop_ids,
        optimizer=adam(1e-3, weight_decay=0.1), sampling=Sampling(6),
    )  # fmt: skip
    stage.configure_model()
    before = {name: weights(getattr(stage, name)) for name in FROZEN + TRAINED}
    run = trainer(max_steps=6, val_check_interval=2, check_val_every_n_epoch=None)
    quiet_fit(run, stage, datamodule=module)
    assert "val/score" in run.callback_metrics
    run.save_checkpoint(tmp_path / "a.ckpt")
    return stage, before, run.strategy.checkpoint_io.load_checkpoint(tmp_path / "a.ckpt")


def test_training_moves_policy_and_value_and_leaves_reference_and_reward_to_the_bit(trained):
    stage, before, checkpoint = trained
    for name in FROZEN:
        network = getattr(stage, name)
        assert same_bits(before[name], weights(network)), name
        assert all(p.grad is None and not p.requires_grad for p in network.parameters()), name
        assert not any(module.training for module in network.modules()), name
    for name in TRAINED:
        after = weights(getattr(stage, name))
        assert not any(torch.equal(before[name][key], after[key]) for key in after), name
        assert all(module.training for module in getattr(stage, name).modules()), name
    assert {name.split(".")[0] for name in checkpoint["state_dict"]} == {*TRAINED, "beta", "score_scale"}


def test_frozen_networks_stay_in_eval_mode_whatever_mode_is_asked_for():
    stage = ppo()
    stage.configure_model()
    for mode in (True, False, True):
        stage.train(mode)
        assert stage.policy.training == stage.value.training == mode
        assert not stage.reference.training and not stage.reward.training


def test_no_two_networks_share_storage():
    stage = ppo()
    stage.configure_model()
    places = [p.data_ptr() for name in FROZEN + TRAINED for p in getattr(stage, name).parameters()]
    assert len(places) == len(set(places)) > 0


def test_what_the_next_stage_receives_is_the_policy():
    stage = ppo()
    stage.configure_model()
    assert stage.exportable() is stage.policy


def test_building_the_models_twice_builds_them_once():
    stage = ppo()
    stage.configure_model()
    networks = [getattr(stage, name) for name in FROZEN + TRAINED]
    stage.configure_model()
    assert all(getattr(stage, name) is network for name, network in zip(FROZEN + TRAINED, networks))
