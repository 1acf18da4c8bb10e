"""A stage's floating-point operations are read off its config, and minutes from those."""

import pytest
import torch

from components.hydra_hooks import compose_config
from components.models.config import GPTConfig
from components.models.heads import CausalLM
from components.tasks import duration


def operations(stage: str, *overrides: str) -> float | None:
    return duration.operations(stage, compose_config([f"stage={stage}", *overrides]))


@pytest.fixture
def each() -> int:
    """Operations per token of model=tiny with all the pieces that its tokenizer may have, 6 per parameter and those of
    attention over 128 tokens."""
    shape = compose_config(["stage=pretrain"]).model
    fields = {name: value for name, value in shape.items() if name not in ("_target_", "vocab_size")}
    with torch.device("meta"):
        parameters = sum(one.numel() for one in CausalLM(GPTConfig(vocab_size=1024, **fields)).parameters())
    return 6 * parameters + 12 * 3 * 128 * 128


def test_pretraining_fills_every_row_of_every_step(each):
    assert operations("pretrain") == each * 500 * 32 * 128
    assert operations("pretrain", "trainer.max_steps=10", "data.batch_size=2") == each * 10 * 2 * 128


def test_epochs_take_all_records_and_steps_as_many_as_they_read(each):
    assert operations("sft") == each * 3 * 4000 * 26
    assert operations("rm", "data.comparisons=100") == each * 2 * 100 * 41
    assert operations("rm", "trainer.max_steps=3", "trainer.max_epochs=null", "data.batch_size=5") == each * 3 * 5 * 41


def test_what_cannot_be_told_is_not_guessed(monkeypatch):
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
