"""stage.freeze and stage.learning_rates in every stage: the frozen stay to the bit, others learn at their rates."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from components.artifacts.store import whole_weights
from components.callbacks.header import parameters
from components.models.lora import TARGETS, LoRA
from components.stages.stage import Stage
from components.training.optimizers import adamw, muon
from tests.kit.several import STRATEGIES, together
from tests.kit.stage_runs import MAKERS
from tests.kit.tiny_stages import Batches, quiet_fit, trainer

ADAM: dict[str, Any] = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
ADAMW = partial(adamw, **ADAM)
LORA = LoRA(rank=2, alpha=4.0, dropout=0.0, targets=TARGETS)
STEPS = 3  # an adapter's A has no gradient before its B has moved
FREEZE = ("model.embed_tokens", "model.layers.[0-9].self_attn.*")
SLOW = {"model.layers.1.mlp": 1e-30}  # a rate at which no weight in float32 changes


def matching(name: str, *parts: str) -> bool:
    return any(part in name for part in parts)


def run_of(
    make: Callable[[int], tuple],
    way: tuple[str | None, int] = (None, 1),
    *,
    optimizer: Any = ADAMW,
    lora: LoRA | None = None,
    freeze: tuple[str, ...] = FREEZE,
    rates: dict[str, float] = SLOW,
    **settings: Any,
) -> tuple[Stage, dict[str, Tensor], dict[str, Tensor]]:
    """The stage after training, and its trained networks' weights (this process's part of them) before and after."""
    strategy, processes = way
    stage, loader = make(processes)
    stage.optimizer_builder, stage.run = optimizer, replace(stage.run, lora=lora)
    stage.freeze_patterns, stage.learning_rates = freeze, rates
    before: dict[str, Tensor] = {}
    start = stage.on_train_start
    stage.on_train_start = lambda: (before.update(trained_networks(stage)), start())[1]
    several = {"strategy": STRATEGIES[strategy](), "devices": processes} if strategy else {}
    quiet_fit(trainer(max_steps=STEPS, limit_val_batches=0, **several, **settings), stage, loader, Batches([]))
    return stage, before, trained_networks(stage)


def trained_networks(stage: Stage) -> dict[str, Tensor]:
    parts = {n: p.to_local() if hasattr(p, "to_local") else p for n, p in stage.named_parameters()}
    return {n: part.detach().clone() for n, part in parts.items() if n.split(".")[0] not in stage.frozen}


def faults(make: Callable[[int], tuple], way: tuple[str | None, int], **settings: Any) -> list[str]:
    """The weights that should have stayed and moved, or the reverse."""
    _, before, after = run_of(make, way, **settings)
    stays = ("embed_tokens", "self_attn", "layers.1.mlp")
    wrong = [n for n in after if after[n].numel() and torch.equal(before[n], after[n]) != matching(n, *stays)]
    return wrong + (["nothing stayed"] if not any(matching(n, *stays) for n in after) else [])


@pytest.mark.parametrize("name", MAKERS)
def test_frozen_weights_stay_to_the_bit_and_the_others_learn(name):
    assert faults(MAKERS[name], (None, 1)) == []


@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_also_with_muon(name):
    assert faults(MAKERS[name], (None, 1), optimizer=partial(muon, **ADAM)) == []


@pytest.mark.slow
@pytest.mark.parametrize("way", [("ddp", 2), ("fsdp", 1), ("fsdp", 2)], ids=str)
def test_also_in_several_processes(way, tmp_path):
    def work(rank: int) -> dict[str, list[str]]:
        return {name: found for name, make in MAKERS.items() if (found := faults(make, way))}

    assert together(work, tmp_path, way[1]) == [{}] * way[1]


@pytest.mark.parametrize("name", ["sft", "rm", "ppo"])
def test_also_with_adapters_which_the_names_of_their_projections_mean(name):
    stage, before, after = run_of(MAKERS[name], lora=LORA, freeze=("model.layers.0",), rates={"*.lora_A": 1e-30})
    adapters = [name for name in after if ".adapters." in name]
    assert len([n for n in adapters if ".layers.0." in n]) == len(adapters) / 2
    for name in adapters:
        stays = ".layers.0." in name or name.endswith(".down")
        assert torch.equal(before[name], after[name]) == stays, name


def test_what_is_exported_has_the_frozen_weights_that_training_started_from():
    stage, before, _ = run_of(MAKERS["ppo"], rates={})
    exported = whole_weights(stage.exportable())
    for name, weight in exported.items():
        assert torch.equal(weight, before[f"policy.{name}"]) == matching(name, "embed_tokens", "self_attn")


def test_the_header_and_the_first_steps_check_count_what_is_trained(monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(Stage, "log_checks", lambda self, *lines: told.extend(lines))
    stage, _, after = run_of(MAKERS["sft"], rates={})
    trained = [n for n in after if not matching(n, "embed_tokens", "self_attn")]
    assert f"the first step changed {len(trained)} of {len(trained)} trained parameters" in told
    counts = {n: after[n].numel() for n in after}
    expected = f"{sum(counts.values()):,} parameters, {sum(counts[n] for n in trained):,} of them trained"
    assert parameters(stage) == expected


def test_a_factor_multiplies_every_networks_own_rate_at_every_step_of_the_schedule():
    """PPO's policy and value model have rates of 1e-3 and 2e-3; half of each remains after a linear decay's half."""
    seen: list[dict[str, float]] = []

    def make(world_size: int) -> tuple:
        stage, loader = MAKERS["ppo"](world_size)
        stage.value_lr = 2e-3
        stage.schedule = lambda step, total_steps: 1 - step / 4
        batch_start = stage.on_train_batch_start

        def note(batch: Any, batch_idx: int) -> None:
            seen.append({group["name"]: group["lr"] for group in stage.trainer.optimizers[0].param_groups})
            batch_start(batch, batch_idx)

        stage.on_train_batch_start = note
        return stage, loader

    run_of(make, freeze=(), rates={"policy.lm_head": 0.5, "model.norm": 10.0})
    for step, rates in enumerate(seen):
        left = 1 - step / 4
        assert rates == pytest.approx(
            {
                "model": 1e-3 * left,
                "model x0.5": 5e-4 * left,
                "model_no_decay": 1e-3 * left,
                "model_no_decay x10": 1e-2 * left,
                "value_model": 2e-3 * left,
                "value_model_no_decay": 2e-3 * left,
                "value_model_no_decay x10": 2e-2 * left,
            }
        )
    assert len(seen) == STEPS


def test_the_rate_that_is_logged_is_the_one_without_factors():
    logged: list[float] = []

    def make(world_size: int) -> tuple:
        stage, loader = MAKERS["sft"](world_size)
        stage.log = lambda name, value, **_: logged.append(float(value)) if name == "train/lr" else None
        return stage, loader

    run_of(make, freeze=(), rates={"*": 0.25})
    assert logged == pytest.approx([1e-3] * STEPS)


@pytest.mark.parametrize("setting", ["freeze_patterns", "learning_rates"])
def test_a_stage_used_without_the_command_line_refuses_a_pattern_without_effect(setting):
    stage, loader = MAKERS["dpo"](1)
    setattr(stage, setting, {"lm_haed": 0.5})
    with pytest.raises(ValueError, match=r"'lm_haed' matches no weight. Near it: lm_head"):
        quiet_fit(trainer(max_steps=1, limit_val_batches=0), stage, loader, Batches([]))


@pytest.mark.parametrize("lora", [None, LORA], ids=["all", "adapters"])
def test_a_checkpoint_contains_the_frozen_weights_which_no_artifact_may_have(lora, tmp_path):
    """A new model's embeddings, or a new adapter's."""
    stage, before, _ = run_of(MAKERS["pretrain"], lora=lora, freeze=("model.layers.0",), rates={})
    stage.trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert saved.keys() == (before.keys() if lora is None else {n for n in before if ".adapters." in n})
    assert all(torch.equal(saved[n], before[n]) for n in saved if ".layers.0." in n)
