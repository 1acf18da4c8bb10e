"""Two processes that see half of a batch each learn what one process learns from all of it."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from components.data.batches import WithText
from components.rewards.functions import FunctionReward
from components.stages.distill import Distill
from components.stages.dpo import DPO
from components.stages.grpo import GRPO
from components.stages.kto import KTO
from components.stages.ppo import PPO
from components.stages.rejection import Rejection
from components.stages.rloo import RLOO
from components.stages.rm import RewardModel
from components.stages.rollouts import RolloutStage
from components.stages.sft import SFT
from components.stages.simpo import SimPO
from components.stages.stage import Stage
from components.training.gradient_mean import GradientMean
from tests.kit import rewards
from tests.kit.several import GivenResponses, Rollouts
from tests.kit.tiny_stages import (
    CONSTANT,
    END,
    PROMPTS,
    Batches,
    ListLogger,
    Mixed,
    causal,
    distill,
    dpo,
    grpo,
    keeper,
    kept,
    kto,
    lm_batch,
    ppo,
    preference_batch,
    quiet_fit,
    rejection,
    rloo,
    same_bits,
    scalar,
    simpo,
    trainer,
    unpaired_batch,
    weights,
)

STEPS = [  # documents of each optimizer step: the first half goes to rank 0
    [([1, 3], [4, 5, 6, 7, 8, 9, 10, END]), ([1, 4], [3, 3, END]), ([1], [5, END]), ([1, 2, 3], [11, END])],
    [([1, 9], [END]), ([1], [12, 13, END]), ([1, 5, 6], []), ([1, 7], [])],  # nothing to learn on rank 1
]
RANKINGS = [  # two prompts with pairs for rank 0, one for rank 1
    ([1, 3], [[5, END], [6, END]], [0.0, 1.0]),
    ([1, 4], [[7, END], [3, 3, END]], [1.0, 0.0]),
    ([1, 8], [[9, END], [10, END]], [2.0, 2.0]),
    ([1, 6, 6], [[9, 4, END], [5, END]], [0.0, 1.0]),
]

LABELED = [  # three for rank 0, one for rank 1
    ([1, 3], [5, END], True, [5, END]),
    ([1, 4], [3, 3, END], False, [5, END]),
    ([1, 8], [9, 10, END], True, [9, 10, END]),
    ([1, 6, 6], [5, END], True, [9, 10, END]),
]


def halves(items: list) -> tuple[list, list]:
    return items[: len(items) // 2], items[len(items) // 2 :]


class KeepWeights(L.Callback):
    """Leaves every rank's weights and gradient in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert trainer.global_step == 2
        torch.save((weights(pl_module), kept(trainer)), self.folder / f"{trainer.global_rank}.pt")
        torch.save(trainer.logger.logged, self.folder / f"logged-{trainer.global_rank}.pt")
        torch.save(pl_module.histograms(), self.folder / f"histograms-{trainer.global_rank}.pt")


def sft(world_size: int) -> tuple[SFT, Batches]:
    stage = SFT(model=causal, schedule=CONSTANT, optimizer=keeper(0.1))
    parts = zip(*map(halves, STEPS)) if world_size == 2 else [STEPS]
    return stage, Batches(*([lm_batch(step) for step in part] for part in parts))


def rm(world_size: int) -> tuple[RewardModel, Batches]:
    stage = RewardModel(model=scalar, schedule=CONSTANT, optimizer=keeper(0.1))
    parts = halves(RANKINGS) if world_size == 2 else [RANKINGS]
    return stage, Batches(*([preference_batch(part)] * 2 for part in parts))


def whole_dpo(world_size: int) -> tuple[DPO, Batches]:
    stage = dpo(optimizer=keeper(0.1))
    parts = halves(RANKINGS) if world_size == 2 else [RANKINGS]
    return stage, Batches(*([preference_batch(part)] * 2 for part in parts))


def dpo_without_a_pair(world_size: int) -> tuple[DPO, Batches]:
    """Rank 1 has nothing but ties, in the first step as in the second."""
    stage = dpo(optimizer=keeper(0.1))
    parts = [RANKINGS[:2], RANKINGS[2:3]] if world_size == 2 else [RANKINGS[:3]]
    return stage, Batches(*([preference_batch(part)] * 2 for part in parts))


def whole_simpo(world_size: int) -> tuple[SimPO, Batches]:
    stage = simpo(optimizer=keeper(0.1))
    parts = halves(RANKINGS) if world_size == 2 else [RANKINGS]
    return stage, Batches(*([preference_batch(part)] * 2 for part in parts))


def whole_kto(world_size: int) -> tuple[KTO, Batches]:
    """Answers to other prompts are those that become likelier, so the second step has a reference point above 0."""
    stage = kto(optimizer=keeper(1.0), beta=0.5)
    parts = [LABELED[:3], LABELED[3:]] if world_size == 2 else [LABELED]
    return stage, Batches(*([unpaired_batch(part)] * 2 for part in parts))


def from_rollouts(make: Callable[..., RolloutStage], kind: type[RolloutStage], **settings: Any):
    """Rank 0 asks five prompts and rank 1 three, so that every stage's weights differ."""

    def stage_and_loader(world_size: int) -> tuple[RolloutStage, Batches]:
        drawing = type(f"Given{kind.__name__}", (GivenResponses, kind), {})
        stage = make(drawing, optimizer=keeper(0.1), epochs=1, minibatches=1, **settings)
        return stage, Rollouts(stage, *([PROMPTS[:5], PROMPTS[5:]] if world_size == 2 else [PROMPTS]))

    return stage_and_loader


def both() -> FunctionReward:
    """Two functions, of which the second does not apply to responses without an end."""
    places = {name: f"{rewards.__file__}:{name}" for name in ("sevens", "short")}
    return FunctionReward.of({"functions": places}, "reward")


class RolloutsWithText(Rollouts):
    """Rollouts with a batch of text in each, of other shares than the responses have."""

    def __iter__(self):
        rank, size = self.stage.global_rank, self.stage.trainer.world_size
        for number, minibatch in enumerate(super().__iter__()):
            documents = STEPS[number] if size == 1 else [STEPS[number][:3], STEPS[number][3:]][rank]
            yield WithText(minibatch, lm_batch(documents))


def ppo_ptx(world_size: int) -> tuple[PPO, Batches]:
    drawing = type("GivenMixed", (GivenResponses, Mixed), {})
    stage = ppo(drawing, optimizer=keeper(0.1), epochs=1, minibatches=1, value_lr=0.05, pretraining_coefficient=2.0)
    return stage, RolloutsWithText(stage, *([PROMPTS[:5], PROMPTS[5:]] if world_size == 2 else [PROMPTS]))


MAKERS = {
    "sft": sft,
    "rm": rm,
    "dpo": whole_dpo,
    "kto": whole_kto,
    "simpo": whole_simpo,
    # every part of it: the scale of scores, whitening, the controller of beta, the update
    "ppo": from_rollouts(ppo, PPO, value_lr=0.05, kl_target=6.0, kl_horizon=50, target_kl=0.5),
    "ppo_ptx": ppo_ptx,
    **{
        variant: from_rollouts(grpo, GRPO, variant=variant, samples_per_prompt=2)
        for variant in ("grpo", "dapo", "dr_grpo", "gspo", "cispo")
    },
    "rloo": from_rollouts(rloo, RLOO, samples_per_prompt=2),
    "function": from_rollouts(rloo, RLOO, samples_per_prompt=2, reward=both, score_scale=1.0, missing_end_score=None),
    "rejection": from_rollouts(rejection, Rejection, samples_per_prompt=2),
    "distill": from_rollouts(distill, Distill),
}


# GRPO with another weight of each token, and RLOO with another reward: the fast tests have each once
VARIANTS = ("dapo", "dr_grpo", "gspo", "cispo", "function")
CASES = [
    pytest.param(make, id=name, marks=pytest.mark.slow if name in VARIANTS else ()) for name, make in MAKERS.items()
]


def trained(
    make: Callable[[int], tuple[Stage, Batches]], world_size: int, folder: Path, *, every: int = 1
) -> list[tuple[dict, Tensor]]:
    """(weights, last gradient) of each rank."""
    folder.mkdir()
    stage, loader = make(world_size)
    several = {"strategy": "ddp_fork", "devices": 2} if world_size == 2 else {}
    stage.configure_model()
    more = {"logger": ListLogger(), "log_every_n_steps": every}
    run = trainer(
        max_steps=2, limit_val_batches=0, gradient_clip_val=0.5, callbacks=[KeepWeights(folder)], **(several | more)
    )
    quiet_fit(run, stage, loader, Batches([]))
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Callable[..., tuple[Path, list[tuple[dict, Tensor]]]]:
    """A function like `trained` that runs the same once, with the folder of the run."""

    @functools.cache
    def run(make, world_size, *, every):
        folder = tmp_path_factory.mktemp("runs") / "run"
        return folder, trained(make, world_size, folder, every=every)

    return run


@pytest.mark.parametrize("make", [*CASES, pytest.param(dpo_without_a_pair, id="dpo without a pair")])
def test_two_processes_with_unequal_shares_end_where_one_with_the_union_does(make, runs):
    _, [(one, gradient)] = runs(make, 1, every=1)
    assert gradient.abs().max() > 1e-3
    _, ranks = runs(make, 2, every=1)
    for weights_of_rank, gradient_of_rank in ranks:
        assert (gradient_of_rank - gradient).abs().max() < 1e-6
        assert distance(weights_of_rank, one) < 1e-5
    assert same_bits(ranks[0][0], ranks[1][0])


@pytest.mark.parametrize("every", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", CASES)
def test_every_metric_of_two_processes_is_that_of_one_with_the_union(make, every, runs):
    """Of rollouts and of steps; only the seconds that parts take may differ."""
    folders = [runs(make, world_size, every=every)[0] for world_size in (1, 2)]
    one, two = (torch.load(folder / "logged-0.pt") for folder in folders)
    assert one.keys() == two.keys() and len(one) >= 5
    for name in one:
        assert [step for step, _ in two[name]] == [step for step, _ in one[name]], name
        if not name.startswith("rollout/seconds_"):
            values = [[value for _, value in run[name]] for run in (one, two)]
            assert values[1] == pytest.approx(values[0], rel=1e-4, abs=1e-5), name
    shown, of_two = (torch.load(folder / "histograms-0.pt") for folder in folders)
    assert of_two.keys() == shown.keys() and bool(shown) == isinstance(make(1)[0], RolloutStage)
    for name in shown:
        torch.testing.assert_close(of_two[name].sort().values, shown[name].sort().values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=() if name in ("sft", "ppo") else pytest.mark.slow)
        for name, make in MAKERS.items()
    ],
)
def test_the_mean_of_the_processes_means_would_be_another_end(make, runs, tmp_path, monkeypatch):
    _, [(one, _)] = runs(make, 1, every=1)
    monkeypatch.setattr(GradientMean, "scaled", lambda self, terms, stage: sum(term.mean for term in terms))
    [(other, _), _] = trained(make, 2, tmp_path / "two")
    assert distance(one, other) > 1e-4


class KeepMetrics(L.Callback):
    """Leaves every rank's validation metrics in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.save(dict(trainer.callback_metrics), self.folder / f"{trainer.global_rank}.pt")


def validated(make: Callable[[int], tuple[Stage, Batches]], world_size: int, folder: Path) -> list[dict]:
    folder.mkdir()
    stage, loader = make(world_size)
    several = {"strategy": "ddp_fork", "devices": 2} if world_size == 2 else {}
    stage.configure_model()
    trainer(callbacks=[KeepMetrics(folder)], **several).validate(stage, loader, verbose=False)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


@pytest.mark.parametrize("make", [sft, rm, whole_dpo])
def test_validation_on_two_processes_reports_the_figures_of_one(make, tmp_path):
    """Of the rankings only rank 0 has a pair of matched length."""
    [one] = validated(make, 1, tmp_path / "one")
    for of_rank in validated(make, 2, tmp_path / "two"):
        assert of_rank.keys() == one.keys()
        for name in one:
            torch.testing.assert_close(of_rank[name], one[name], atol=1e-5, rtol=1e-5, msg=name)
    assert make is not rm or "val/accuracy_length_matched" in one


def asked(make: Callable[[int], tuple[RolloutStage, Batches]]) -> Callable[[int], tuple[RolloutStage, Batches]]:
    """The stage to be validated on five prompts of rank 0 and three of rank 1."""

    def stage_and_prompts(world_size: int) -> tuple[RolloutStage, Batches]:
        stage, _ = make(world_size)
        stage.rollout = 0
        return stage, Batches(*([part] for part in ([PROMPTS[:5], PROMPTS[5:]] if world_size == 2 else [PROMPTS])))

    return stage_and_prompts


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "grpo", "rloo", "rejection", "distill"])
def test_held_out_prompts_of_two_processes_have_the_figures_of_one(name, tmp_path):
    [one] = validated(asked(MAKERS[name]), 1, tmp_path / "one")
    own = {"val/reverse_kl", "val/forward_kl"} if name == "distill" else {"val/score", "val/kl"}
    assert own | {"val/entropy", "val/length", "val/finished"} <= one.keys()
    for of_rank in validated(asked(MAKERS[name]), 2, tmp_path / "two"):
        assert of_rank.keys() == one.keys()
        for figure in one:
            torch.testing.assert_close(of_rank[figure], one[figure], atol=1e-5, rtol=1e-4, msg=figure)
