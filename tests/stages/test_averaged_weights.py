"""The average of real stages: resumed to the bit, the same in two processes as in one, of adapters alone, and exported
before a reward model gets its zero."""

from functools import partial
from typing import Any

import pytest
import torch

from components.artifacts.store import whole_weights
from components.callbacks.checkpoints import Checkpoints
from components.callbacks.weight_average import WeightAverage
from components.generation.generate import Sampling
from components.models.lora import LoRA
from components.stages.rm import RewardModel
from components.stages.sft import SFT
from components.stages.stage import Stage
from components.training.contract import RunContext
from tests.kit.several import STRATEGIES, together
from tests.kit.stage_runs import MAKERS
from tests.kit.tiny_stages import (
    CONSTANT,
    Batches,
    adam,
    causal,
    dpo,
    ppo,
    quiet_fit,
    same_bits,
    scalar,
    trainer,
    weights,
)

LORA = LoRA(rank=2, alpha=4.0, dropout=0.0, targets=("q_proj", "v_proj"))
EVERY = {"val_check_interval": 2, "check_val_every_n_epoch": None, "limit_val_batches": 1}


def new_stage(name: str, tokenizer: Any, **run: Any) -> Stage:
    size = tokenizer.vocab_size
    common = dict(optimizer=adam(3e-3), schedule=CONSTANT, run=RunContext(**run))
    if name in ("sft", "rm"):
        kind, network = {"sft": (SFT, causal), "rm": (RewardModel, scalar)}[name]
        return kind(model=lambda: network(0, size), **common)
    common |= {"policy": lambda: causal(0, size)}
    if name == "dpo":
        return dpo(**common)
    score = lambda: scalar(1, size)
    return ppo(**common, reward=score, value=score, stop_ids=tokenizer.stop_ids, sampling=Sampling(6))


def run_of(name, data, folder, *, resume=None, max_steps=5, lora=None, average=True, **settings) -> Any:
    """The exported weights of a whole run in new objects, and the loss or entropy of its last validation."""
    module = data(name)
    stage = new_stage(name, module.tokenizer, lora=lora)
    callbacks = [*([WeightAverage(0.6)] if average else []), Checkpoints(folder, 3, keep=9)]
    run = trainer(max_steps=max_steps, callbacks=callbacks, enable_checkpointing=True, **EVERY | settings)
    quiet_fit(run, stage, datamodule=module, ckpt_path=resume, weights_only=True)
    measured = {n: float(v) for n, v in run.callback_metrics.items() if n in ("val/loss", "val/entropy")}
    return weights(stage.exportable()), measured, stage, module


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        ("sft", None),
        pytest.param("rm", None, marks=pytest.mark.slow),
        pytest.param("dpo", LORA, marks=pytest.mark.slow),
        pytest.param("ppo", None, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_exports_the_same_average_and_measures_the_same(name, lora, data, tmp_path):
    whole, measured, _, _ = run_of(name, data, tmp_path / "whole", lora=lora)
    plain, of_plain, _, _ = run_of(name, data, tmp_path / "plain", lora=lora, average=False)
    assert not same_bits(whole, plain) and measured != of_plain
    resume = tmp_path / "whole/step=00000003.ckpt"
    resumed, again, _, _ = run_of(name, data, tmp_path / "resumed", lora=lora, resume=resume)
    assert same_bits(whole, resumed) and measured == again
    trained = torch.load(tmp_path / "whole/step=00000005.ckpt", weights_only=True)["state_dict"]
    of_plain_run = torch.load(tmp_path / "plain/step=00000005.ckpt", weights_only=True)["state_dict"]
    assert same_bits(trained, of_plain_run)  # training itself is as without an average


@pytest.mark.parametrize("name", MAKERS)
def test_every_stage_exports_the_average_and_trains_as_without_it(name):
    def end(*callbacks) -> tuple[dict, list]:
        stage, loader = MAKERS[name](1)
        losses, compute = [], stage.compute_loss
        stage.compute_loss = lambda batch: losses.append(compute(batch)) or losses[-1]
        run = trainer(max_steps=3, limit_val_batches=0, callbacks=list(callbacks))
        quiet_fit(run, stage, loader, Batches([]))
        return weights(stage.exportable()), [float(output.loss.detach()) for output in losses]

    (averaged, losses), (plain, of_plain) = end(WeightAverage(0.6)), end()
    assert losses == of_plain
    assert not any(torch.equal(averaged[weight], plain[weight]) for weight in plain)


def test_only_what_is_trained_and_exported_is_averaged(data, tmp_path):
    run_of("dpo", data, tmp_path, lora=LORA, max_steps=2)
    saved = torch.load(tmp_path / "step=00000002.ckpt", weights_only=True)["callbacks"]["WeightAverage"]["averages"]
    assert saved and all(name.startswith("adapters.") for name in saved)


def test_a_reward_models_zero_is_that_of_its_averaged_weights(data, tmp_path):
    _, _, stage, module = run_of("rm", data, tmp_path)
    with torch.no_grad():
        scores = torch.cat([stage.scores(batch) for batch in module.demonstration_batches()])
    assert abs(float(scores.mean())) < 1e-5


def part(rank, data, way, folder, resume=None, steps=4) -> tuple[dict, dict]:
    """(exported weights, averages in the last checkpoint) of an SFT run, of which this process has its part."""
    strategy, processes = way
    several = {"strategy": STRATEGIES[strategy](), "devices": processes} if strategy else {}
    module = data("sft", batch_size=6 // processes)
    stage = SFT(model=lambda: causal(0, module.tokenizer.vocab_size), optimizer=adam(1e-3), schedule=CONSTANT)
    callbacks = [WeightAverage(0.6), Checkpoints(folder, 1, keep=9)]
    run = trainer(max_steps=steps, callbacks=callbacks, enable_checkpointing=True, **EVERY, **several)
    quiet_fit(run, stage, datamodule=module, ckpt_path=resume, weights_only=True)
    saved = torch.load(folder / f"step={steps:08d}.ckpt", weights_only=True)["callbacks"]["WeightAverage"]["averages"]
    return {n: w.clone() for n, w in whole_weights(stage.exportable()).items()}, saved


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_have_the_average_of_one_also_if_they_resume_from_it(strategy, data, tmp_path):
    work = partial(part, data=data)
    ((alone, averages),) = together(partial(work, way=(None, 1), folder=tmp_path / "1"), tmp_path / "1", 1)
    two = together(partial(work, way=(strategy, 2), folder=tmp_path / "2"), tmp_path / "2", 2)
    mixed = partial(work, way=(strategy, 2), folder=tmp_path / "3", resume=tmp_path / "1/step=00000002.ckpt")
    for exported, of_file in (*two, *together(mixed, tmp_path / "3", 2)):
        assert alone.keys() == exported.keys() == averages.keys() == of_file.keys()
        for name, weight in alone.items():
            torch.testing.assert_close(exported[name], weight, rtol=1e-4, atol=1e-5, msg=name)
            torch.testing.assert_close(of_file[name], averages[name], rtol=1e-4, atol=1e-5, msg=name)
