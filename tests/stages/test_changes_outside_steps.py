"""What is changed outside an optimizer step reaches the artifact, under every strategy: the zero of a reward model's
scores, and the scale of the scores in the value model."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from components.artifacts.store import whole_weights
from components.callbacks.checkpoints import Checkpoints
from components.generation.generate import Sampling
from components.models.lora import TARGETS, LoRA, merged
from components.stages.rm import RewardModel
from components.training.contract import RunContext
from tests.kit.several import STRATEGIES, together
from tests.kit.tiny_stages import CONSTANT, adam, causal, ppo, quiet_fit, scalar, trainer

WAYS = [(None, 1), ("fsdp", 1), *(pytest.param((name, 2), marks=pytest.mark.slow) for name in STRATEGIES)]
SHIFT = 3.0  # of the fresh head: far from a mean of zero
LORA = LoRA(rank=2, alpha=4.0, dropout=0.5, targets=TARGETS)
Data = Callable[..., Any]


def shifted(vocab_size: int) -> nn.Module:
    model = scalar(1, vocab_size)
    model.rescale_(scale=1.0, shift=SHIFT)
    return model


def several(way: tuple[str | None, int]) -> dict[str, Any]:
    strategy, processes = way
    return {"strategy": STRATEGIES[strategy](), "devices": processes} if strategy else {}


def reward_model(rank: int, data: Data, way: tuple, lora: LoRA | None) -> tuple[float, float]:
    """(mean score of the demonstrations by the exported weights, how far training's end moved the bias)."""
    module = data("rm")
    start = partial(shifted, module.tokenizer.vocab_size)
    stage = RewardModel(model=start, optimizer=adam(1e-3), schedule=CONSTANT, run=RunContext(lora=lora))
    quiet_fit(trainer(max_steps=2, limit_val_batches=0, **several(way)), stage, datamodule=module)
    weights = whole_weights(stage.exportable())
    exported = scalar(1, module.tokenizer.vocab_size).eval()
    exported.load_state_dict(merged(weights, lora) if lora else weights)
    with torch.no_grad():
        scores = [exported(b.input_ids, b.layout).flatten()[b.last] for b in module.demonstration_batches()]
    return float(torch.cat(scores).mean()), float(weights["score.bias"]) - SHIFT


@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "adapters with dropout"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_by_an_exported_reward_model_demonstrations_average_zero(way, lora, data, tmp_path):
    ends = together(partial(reward_model, data=data, way=way, lora=lora), tmp_path, way[1])
    for mean, moved in ends:
        assert abs(mean) < 1e-5
        assert abs(moved) > 1


def best_reward_model(rank: int, data: Data, way: tuple, folder: Path) -> tuple[float, int]:
    """As above of the weights of the best validation, and its step: the first, since lengths never change."""
    module = data("rm")
    size = module.tokenizer.vocab_size
    stage = RewardModel(model=partial(shifted, size), optimizer=adam(0.3), schedule=CONSTANT)
    saving = Checkpoints(folder, export="best", metric="val/longer_wins")
    settings = dict(max_steps=3, val_check_interval=1, enable_checkpointing=True, callbacks=[saving])
    quiet_fit(trainer(**settings, **several(way)), stage, datamodule=module)
    exported = scalar(1, size).eval()
    exported.load_state_dict(whole_weights(stage.exportable()))
    with torch.no_grad():
        scores = [exported(b.input_ids, b.layout).flatten()[b.last] for b in module.demonstration_batches()]
    return float(torch.cat(scores).mean()), saving.exported["step"]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_so_they_do_where_the_best_weights_are_put_back_at_the_end(way, data, tmp_path):
    work = partial(best_reward_model, data=data, way=way, folder=tmp_path / "checkpoints")
    for mean, step in together(work, tmp_path / "ranks", way[1]):
        assert abs(mean) < 1e-4
        assert step == 1


def value_head(rank: int, data: Data, way: tuple, score_scale: float | None) -> tuple[dict[str, Tensor], float]:
    """(the value model's weights after one update of rate 0, the scale of scores)."""
    module = data("ppo", prompts_per_rollout=6 // way[1])
    size = module.tokenizer.vocab_size
    stage = ppo(
        policy=lambda: causal(0, size),
        reward=partial(shifted, size),
        value=partial(shifted, size),
        optimizer=adam(0.0),
        value_lr=0.0,
        sampling=Sampling(6),
        stop_ids=module.tokenizer.stop_ids,
        score_scale=score_scale,
    )
    quiet_fit(trainer(max_steps=1, limit_val_batches=0, **several(way)), stage, datamodule=module)
    return whole_weights(stage.value), float(stage.score_scale)


@pytest.mark.slow
@pytest.mark.parametrize("score_scale", [None, 0.25], ids=["measured", "given"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_value_model_starts_as_the_scaled_reward_model(way, score_scale, data, tmp_path):
    found = together(partial(value_head, data=data, way=way, score_scale=score_scale), tmp_path, way[1])
    weights, scale = found[0]
    assert scale == score_scale or score_scale is None
    reward = shifted(weights["model.embed_tokens.weight"].shape[0]).state_dict()
    assert weights.keys() == reward.keys() and scale not in (0.0, 1.0)
    for name, weight in weights.items():
        expected = reward[name] * scale if name.startswith("score.") else reward[name]
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-5, msg=name)
