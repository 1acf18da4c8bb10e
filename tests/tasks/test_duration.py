"""A stage's floating-point operations are computed from its config, and minutes from those."""

import pytest
import torch

from components.launch.composing import compose_config
from components.models.config import GPTConfig
from components.models.heads import CausalLM
from components.tasks import duration


def operations(stage: str, *overrides: str) -> float | None:
    return duration.operations(stage, compose_config([f"stage={stage}", *overrides]))


@pytest.fixture
def parameters() -> int:
    """Of model=tiny with the largest vocabulary of its tokenizer."""
    shape = compose_config(["stage=pretrain"]).model
    fields = {name: value for name, value in shape.items() if name not in ("_target_", "vocab_size")}
    with torch.device("meta"):
        return sum(one.numel() for one in CausalLM(GPTConfig(vocab_size=1024, **fields)).parameters())


def per_token(parameters: int, seen: int) -> int:
    """6 per parameter, and those of attention in 5 layers of width 112 over the tokens of one record."""
    return 6 * parameters + 12 * 5 * 112 * seen


def test_pretraining_fills_every_row_of_every_step(parameters):
    each = per_token(parameters, 29)
    assert operations("pretrain") == pytest.approx(each * 600 * 8 * 128)
    found = operations("pretrain", "trainer.max_steps=10", "data.batch_size=2", "context=64")
    assert found == pytest.approx(each * 10 * 2 * 64)


def test_epochs_read_all_records_and_steps_only_theirs(parameters):
    assert operations("sft") == per_token(parameters, 28) * 10_000 * 28
    scoring = per_token(parameters - 1024 * 112 + 113, 45)  # one output in place of the vocabulary
    assert operations("rm", "data.comparisons=100") == scoring * 100 * 45
    steps = operations("rm", "trainer.max_steps=3", "trainer.max_epochs=null", "data.batch_size=5")
    assert steps == scoring * 3 * 5 * 45


def test_learning_from_comparisons_reads_them_once_more_with_a_reference(parameters):
    each = per_token(parameters, 45)
    for stage, passes in (("dpo", 4 / 3), ("simpo", 1)):
        assert operations(stage, "data.comparisons=90") == pytest.approx(passes * each * 90 * 45), stage
    # four labeled answers of each comparison, of 28 tokens with the mismatched one
    answers = operations("kto", "data.comparisons=90", "data.completions=4")
    assert answers == pytest.approx(4 / 3 * per_token(parameters, 28) * 4 * 90 * 28)
    steps = operations("kto", "trainer.max_steps=3", "trainer.max_epochs=null", "data.batch_size=5")
    assert steps == pytest.approx(4 / 3 * per_token(parameters, 28) * 3 * 5 * 28)


def test_adapters_cost_less_than_all_weights():
    """About four of six per parameter: below the first adapters nothing is passed on."""
    assert 0.65 < operations("sft", "lora=default", "lora.rank=1") / operations("sft") < 0.7


def test_a_reward_model_of_a_small_model_is_a_matter_of_minutes():
    """Ten of them where training runs at 100 GFLOP/s."""
    needed = [operations(stage, "model=small") for stage in ("tokenizer", "pretrain", "sft", "rm")]
    assert sum(needed) < 10 * 60 * 100e9


def test_what_is_unknown_is_not_guessed(monkeypatch):
    assert operations("ppo") is None
    assert operations("pretrain", "data=text", "data.path=mine.txt") is None
    assert duration.minutes([1e12, None]) is None
    monkeypatch.setattr(duration.forking, "ACCELERATORS", ("/dev/null",))
    assert duration.minutes([1e12]) is None


def test_minutes_grow_with_operations_and_stages(monkeypatch):
    monkeypatch.setattr(duration.forking, "ACCELERATORS", ())
    monkeypatch.setattr(duration, "_rate", lambda: 1e11)
    each = duration.VALIDATION * 1e13 / (duration.SHARE * 1e11)
    assert duration.minutes([0.0, 1e13]) == pytest.approx((2 * duration.START + each) / 60)


def test_the_rate_is_that_of_a_machine():
    assert 1e7 < duration._rate(64, 0.01) < 1e16
