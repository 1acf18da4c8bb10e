"""The best weights of real stages: adapters alone, a reward model's zero, and two processes as one."""

from functools import partial

import pytest
import torch

from components.artifacts.store import whole_weights
from components.callbacks.checkpoints import Checkpoints
from components.models.lora import LoRA
from components.stages.rm import RewardModel
from components.stages.sft import SFT
from components.training.checkpoint_io import BEST, latest
from components.training.contract import RunContext
from tests.kit.several import STRATEGIES, together
from tests.kit.tiny_stages import CONSTANT, adam, causal, quiet_fit, same_bits, scalar, trainer, weights

EARLY = {"export": "best", "metric": "val/loss", "mode": "max"}  # the loss falls, so that the highest is the first
ADAPTERS = LoRA(rank=2, alpha=4.0, dropout=0.0, targets=("q_proj", "v_proj"))


def trained(name, data, folder, *, resume=None, lora=None, choice=EARLY, max_steps=4, **settings):
    module = data(name, **settings.pop("sizes", {}))
    size = module.tokenizer.vocab_size
    kind, network = {"sft": (SFT, causal), "rm": (RewardModel, scalar)}[name]
    context = RunContext(lora=lora)
    stage = kind(model=lambda: network(0, size), optimizer=adam(3e-3), schedule=CONSTANT, run=context)
    checkpoints = Checkpoints(folder, every_n_steps=3, **choice)
    run = trainer(
        max_steps=max_steps,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        callbacks=[checkpoints],
        enable_checkpointing=True,
        **settings,
    )
    quiet_fit(run, stage, datamodule=module, ckpt_path=resume, weights_only=True)
    return stage, checkpoints, module


def test_the_best_file_holds_adapters_alone_and_they_are_put_back(data, tmp_path):
    early = trained("sft", data, tmp_path / "early", lora=ADAPTERS, max_steps=2)[0]
    best, checkpoints, _ = trained("sft", data, tmp_path / "best", lora=ADAPTERS)
    kept = torch.load(tmp_path / "best" / BEST, weights_only=True)["state_dict"]
    assert kept and all("adapters" in name for name in kept)
    assert checkpoints.exported["step"] == 2
    for name, tensor in kept.items():
        assert torch.equal(best.state_dict()[name], tensor)
        assert tensor.shape == early.state_dict()[name].shape


def test_a_reward_models_zero_is_that_of_the_exported_weights(data, tmp_path):
    first = EARLY | {"metric": "val/longer_wins"}  # which no step changes, so that none is better than the first
    whole, checkpoints, module = trained("rm", data, tmp_path, choice=first)
    assert checkpoints.exported["step"] == 2
    with torch.no_grad():
        scores = torch.cat([whole.scores(batch) for batch in module.demonstration_batches()])
    assert abs(float(scores.mean())) < 1e-5
    again, resumed, _ = trained("rm", data, tmp_path, resume=latest(tmp_path), choice=first)
    assert same_bits(weights(whole), weights(again)) and resumed.exported == checkpoints.exported


def part(rank, data, strategy, folder):
    several = {"strategy": STRATEGIES[strategy](), "devices": 2} if strategy else {}
    sizes = {"batch_size": 3 if strategy else 6}
    stage, checkpoints, _ = trained("sft", data, folder / "checkpoints", sizes=sizes, **several)
    whole = {name: value.clone() for name, value in whole_weights(stage.exportable()).items()}
    return whole, checkpoints.exported


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_export_the_best_weights_of_one(strategy, data, tmp_path):
    ((alone, why),) = together(partial(part, data=data, strategy=None, folder=tmp_path / "1"), tmp_path / "1", 1)
    first, second = together(partial(part, data=data, strategy=strategy, folder=tmp_path / "2"), tmp_path / "2", 2)
    assert why["step"] == first[1]["step"] == second[1]["step"] == 2
    for name, weight in alone.items():
        torch.testing.assert_close(first[0][name], weight, rtol=1e-4, atol=1e-5)
        assert torch.equal(first[0][name], second[0][name])
