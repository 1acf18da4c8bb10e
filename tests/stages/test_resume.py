"""N steps are k steps, a checkpoint, and N − k steps in a new process: to the bit."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from components.callbacks.budget import Budget
from components.callbacks.checkpoints import Checkpoints
from components.generation.generate import Sampling
from components.rewards.functions import FunctionReward
from components.stages.pretrain import Pretrain
from components.stages.rm import RewardModel
from components.stages.sft import SFT
from components.stages.stage import Stage
from components.training.schedules import schedule
from tests.kit import rewards
from tests.kit.tiny_stages import (
    ListLogger,
    adam,
    causal,
    distill,
    dpo,
    grpo,
    kto,
    orpo,
    ppo,
    quiet_fit,
    rejection,
    rloo,
    same_bits,
    scalar,
    simpo,
    trainer,
    weights,
)

FILE = Path(rewards.__file__)
COSINE = partial(schedule, "cosine", warmup_steps=2, final_fraction=0.1)


def new_stage(name: str, tokenizer) -> Stage:
    size = tokenizer.vocab_size
    optimizer = adam(3e-3, weight_decay=0.1)
    if name in ("pretrain", "sft"):
        kind = {"pretrain": Pretrain, "sft": partial(SFT, neftune_alpha=5.0)}[name]
        return kind(model=lambda: causal(0, size, dropout=0.2), optimizer=optimizer, schedule=COSINE)
    if name == "rm":
        chosen = {"freeze": ["model.embed_tokens"], "learning_rates": {"model.layers.0": 0.1}}
        return RewardModel(model=lambda: scalar(1, size), optimizer=optimizer, schedule=COSINE, **chosen)
    policy = dict(policy=lambda: causal(0, size), optimizer=optimizer, schedule=COSINE)
    offline = {"dpo": dpo, "kto": kto, "simpo": simpo, "orpo": orpo}
    if name in offline:
        return offline[name](**policy)
    if name.endswith("_function"):
        own = dict(reward=lambda: FunctionReward.of({"path": f"{FILE}:vowels"}, "reward"), score_scale=1.0)
        drawn = dict(stop_ids=tokenizer.stop_ids, sampling=Sampling(6), missing_end_score=None)
        if name == "grpo_function":
            return grpo(samples_per_prompt=2, refill=2, **policy, **drawn, **own)
        return ppo(value=lambda: scalar(1, size), **policy, **drawn, **own)
    if name == "distill":
        drawn = dict(stop_ids=tokenizer.stop_ids, sampling=Sampling(6))
        return distill(teacher=lambda: causal(5, size, hidden_size=16), **policy, **drawn)
    drawing = policy | dict(reward=lambda: scalar(1, size), stop_ids=tokenizer.stop_ids, sampling=Sampling(6))
    if name in ("grpo", "rloo", "rejection"):
        return {"grpo": grpo, "rloo": rloo, "rejection": rejection}[name](samples_per_prompt=2, **drawing)
    return ppo(
        value=lambda: scalar(1, size),
        kl_target=6.0,
        kl_horizon=100,
        pretraining_coefficient=0.5 if name == "ppo_ptx" else 0.0,
        **drawing,
    )


def run_of(name: str, data, folder, *, resume=None, max_steps: int = 7, every: int, **settings) -> dict[str, Any]:
    """A whole run in new objects: its stage, optimizer state, logged metrics."""
    module = data(name)
    stage, logger = new_stage(name, module.tokenizer), ListLogger()
    torch.manual_seed(torch.seed() % 2**31)  # what the global generator happens to be must not matter
    saving = {"callbacks": [Budget(), Checkpoints(folder, every, keep=9)], "enable_checkpointing": True}
    run = trainer(max_steps=max_steps, logger=logger, **saving, **settings)
    quiet_fit(run, stage, datamodule=module, ckpt_path=resume, weights_only=True)
    assert run.global_step == max_steps
    spent = {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("budget/")}
    optimizer = run.optimizers[0].state_dict()["state"]
    return {"stage": stage, "optimizer": optimizer, "logged": logger.logged, "spent": spent}


def assert_same_end(whole: dict, resumed: dict, after: int) -> None:
    assert same_bits(weights(whole["stage"]), weights(resumed["stage"]))
    assert whole["optimizer"].keys() == resumed["optimizer"].keys()
    for one, other in zip(whole["optimizer"].values(), resumed["optimizer"].values()):
        assert same_bits(one, other)
    assert whole["spent"] == resumed["spent"] and whole["spent"]["budget/flops"] > 0
    train = [name for name in whole["logged"] if name.startswith("train/")]
    assert train
    for name in train:  # every step's loss, accuracy, learning rate …
        assert [entry for entry in whole["logged"][name] if entry[0] >= after] == resumed["logged"][name], name


QUICK = [
    ("pretrain", 3),
    ("sft", 3),
    ("rm", 4),
    ("dpo", 1),
    ("kto", 3),
    ("ppo", 3),
    ("ppo", 5),
    ("grpo", 3),
    ("distill", 3),
]
THOROUGH = [  # the same losses and rollouts in other places, for the slow tests
    ("sft", 6),
    ("dpo", 4),
    ("simpo", 3),
    ("orpo", 3),
    ("ppo", 4),
    ("ppo_ptx", 3),
    ("ppo_function", 3),
    ("grpo", 4),
    ("grpo_function", 3),
    ("rloo", 3),
    ("rloo", 4),
    ("rejection", 3),
    ("rejection", 4),
    ("distill", 4),
]


@pytest.mark.parametrize(("name", "k"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in THOROUGH)])
def test_a_resumed_run_ends_like_an_uninterrupted_one(name, k, data, tmp_path):
    """On-policy stages have four updates a rollout: 3 and 5 lie inside one, 4 between two."""
    whole = run_of(name, data, tmp_path / "a", every=k, val_check_interval=2, check_val_every_n_epoch=None)
    resumed = run_of(
        name,
        data,
        tmp_path / "b",
        every=k,
        resume=tmp_path / "a" / f"step={k:08d}.ckpt",
        val_check_interval=2,
        check_val_every_n_epoch=None,
    )
    assert_same_end(whole, resumed, after=k)


def test_resuming_restores_beta_and_the_scale_of_scores(data, tmp_path):
    run_of("ppo", data, tmp_path, every=3, max_steps=5)
    checkpoint = torch.load(tmp_path / "step=00000003.ckpt", weights_only=True)["state_dict"]
    assert checkpoint["beta"] == pytest.approx(0.1 * (1 - 0.2 * 6 / 100))  # six responses, KL near 0, target 6
    assert checkpoint["score_scale"] > 0
    resumed = run_of("ppo", data, tmp_path / "b", every=9, max_steps=4, resume=tmp_path / "step=00000003.ckpt")
    assert torch.equal(resumed["stage"].beta, checkpoint["beta"])
    assert torch.equal(resumed["stage"].score_scale, checkpoint["score_scale"])


def test_accumulated_micro_batches_resume_too(data, tmp_path):
    whole = run_of("sft", data, tmp_path, every=2, max_steps=5, accumulate_grad_batches=2)
    resumed = run_of(
        "sft",
        data,
        tmp_path / "b",
        every=9,
        max_steps=5,
        accumulate_grad_batches=2,
        resume=tmp_path / "step=00000002.ckpt",
    )
    assert same_bits(weights(whole["stage"]), weights(resumed["stage"]))


def test_a_reward_model_resumed_after_its_last_step_still_gets_its_zero(data, tmp_path):
    """Stopped between the last checkpoint and the export: the checkpoint holds unshifted scores."""
    whole = run_of("rm", data, tmp_path, every=3, max_steps=3)
    resumed = run_of("rm", data, tmp_path / "b", every=3, max_steps=3, resume=tmp_path / "step=00000003.ckpt")
    assert same_bits(weights(whole["stage"]), weights(resumed["stage"]))
