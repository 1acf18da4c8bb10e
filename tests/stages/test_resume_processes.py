"""A run resumes with another number of processes and another strategy, and exports one artifact."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from components.artifacts.store import whole_weights
from components.callbacks.checkpoints import Checkpoints
from components.generation.generate import Sampling
from components.stages.sft import SFT
from tests.kit.several import STRATEGIES, together
from tests.kit.tiny_stages import CONSTANT, adam, causal, ppo, quiet_fit, scalar, trainer

STEPS, MIDDLE = 8, 4  # of a rollout's updates MIDDLE is the last
TOGETHER = 8  # dialogues of a step and prompts of a rollout
ONE = (None, 1)
HYBRID = ("hybrid", 4)  # two copies, each on two processes

pytestmark = pytest.mark.slow


def stage_of(name: str, tokenizer: Any):
    size = tokenizer.vocab_size
    policy = lambda: causal(0, size)
    if name == "sft":
        return SFT(model=policy, optimizer=adam(1e-3), schedule=CONSTANT)
    return ppo(
        policy=policy,
        reward=lambda: scalar(1, size),
        value=lambda: scalar(1, size),
        sampling=Sampling(6),
        stop_ids=tokenizer.stop_ids,
    )


def part(rank: int, name: str, data: Callable[..., Any], way: tuple, folder: Path, resume: Path | None, steps: int):
    """Trains up to `steps` with checkpoints; returns what the first process would write as the artifact."""
    strategy, world_size = way
    each = TOGETHER // world_size
    # 38 dialogues: of the last 6 in an epoch each of four processes has one or two
    settings = {"sft": {"batch_size": each, "demonstrations": 44}, "ppo": {"prompts_per_rollout": each}}
    module = data(name, **settings[name])
    stage = stage_of(name, module.tokenizer)
    several = {"strategy": STRATEGIES[strategy](), "devices": world_size} if strategy else {}
    saving = {"callbacks": [Checkpoints(folder, every_n_steps=MIDDLE, keep=9)], "enable_checkpointing": True}
    run = trainer(max_steps=steps, limit_val_batches=0, **saving, **several)
    quiet_fit(run, stage, datamodule=module, ckpt_path=resume, weights_only=True)
    assert run.global_step == steps
    return {key: value.clone() for key, value in whole_weights(stage.exportable()).items()}


def trained(name: str, data: Any, way: tuple, folder: Path, resume: Path | None = None, steps: int = STEPS):
    work = partial(part, name=name, data=data, way=way, folder=folder / "checkpoints", resume=resume, steps=steps)
    return together(work, folder, way[1])[0]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("ddp", 2), ONE),
        (ONE, ("ddp", 2)),
        (ONE, ("fsdp", 2)),
        (("fsdp", 2), ONE),
        (("ddp", 2), ("fsdp", 2)),
        (("fsdp", 2), ("ddp", 2)),
        (ONE, HYBRID),
        (HYBRID, ("fsdp", 2)),
    ],
    ids=str,
)
def test_sft_ends_like_one_uninterrupted_process(before, after, data, tmp_path):
    unbroken = trained("sft", data, ONE, tmp_path / "unbroken")
    trained("sft", data, before, tmp_path / "before", steps=MIDDLE)
    checkpoint = tmp_path / f"before/checkpoints/step={MIDDLE:08d}.ckpt"
    assert checkpoint.is_file()
    resumed = trained("sft", data, after, tmp_path / "after", resume=checkpoint)
    fresh = trained("sft", data, after, tmp_path / "fresh", steps=STEPS - MIDDLE)
    assert resumed.keys() == unbroken.keys()
    distance = lambda other: max(float((other[key] - unbroken[key]).abs().max()) for key in unbroken)
    assert distance(resumed) < 1e-5 < 1e-3 < distance(fresh)


@pytest.mark.parametrize(
    ("before", "after"),
    [(("ddp", 2), ONE), (ONE, ("fsdp", 2)), (("fsdp", 2), ("ddp", 2)), (ONE, HYBRID), (HYBRID, ONE)],
    ids=str,
)
def test_ppo_resumes_between_two_rollouts_with_its_beta_scale_and_optimizer(before, after, data, tmp_path):
    """Another number of processes draws other responses, so the end is another; what a file holds is the same."""
    trained("ppo", data, before, tmp_path / "before", steps=MIDDLE)
    checkpoint = tmp_path / f"before/checkpoints/step={MIDDLE:08d}.ckpt"
    again = tmp_path / "after/checkpoints"
    weights = trained("ppo", data, after, tmp_path / "after", resume=checkpoint)
    first, last = (torch.load(path, weights_only=True) for path in (checkpoint, again / f"step={STEPS:08d}.ckpt"))
    assert first["state_dict"].keys() == last["state_dict"].keys()
    assert first["state_dict"]["score_scale"] == last["state_dict"]["score_scale"] > 0
    steps = {int(state["step"]) for state in last["optimizer_states"][0]["state"].values()}
    assert steps == {STEPS}
    assert all(value.isfinite().all() for value in weights.values())
