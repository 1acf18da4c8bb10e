"""An optimizer with its state in 8 bits: where it can train, and one message where it cannot."""

import pytest
import torch

from components.launch import schema
from components.launch.schema import ConfigError, check
from components.tasks import dispatch, eight_bit
from tests.kit.composed_configs import compose_config

EIGHT_BIT = "stage.optimizer._target_=components.training.optimizers.adamw8bit"


def eight_bits(*overrides: str) -> None:
    cfg = compose_config(["stage=sft", EIGHT_BIT, *overrides])
    check(cfg)
    eight_bit.check(cfg)


@pytest.mark.parametrize(
    ("overrides", "cuda", "message"),
    [
        (["trainer=cpu"], True, "adamw8bit needs a CUDA GPU, but trainer.accelerator is cpu. Use trainer=gpu, or keep"),
        (["trainer=auto"], False, "adamw8bit needs a CUDA GPU, but torch finds none here"),
        (["trainer=fsdp"], True, r"adamw8bit does not support sharded weights \(trainer=fsdp\). Use trainer=ddp"),
    ],
)
def test_8_bits_where_they_cannot_train_are_one_message(overrides, cuda, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    with pytest.raises(ValueError, match=f"^stage.optimizer: {message}"):
        eight_bits(*overrides)


def test_with_cuda_8_bits_are_accepted_on_one_gpu_and_on_several(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for trainer in ("auto", "gpu", "ddp"):
        eight_bits(f"trainer={trainer}")


def test_without_the_package_the_message_says_how_to_install_it(monkeypatch):
    find_spec = schema.importlib.util.find_spec
    monkeypatch.setattr(
        schema.importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name)
    )
    with pytest.raises(ConfigError, match=r"^stage.optimizer needs the package bitsandbytes, .*\[quant\]"):
        eight_bits()


def test_8_bits_are_refused_before_a_missing_parent_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = compose_config(["stage=sft", EIGHT_BIT, f"paths.logs={tmp_path}/logs"])
    with pytest.raises(ValueError, match="adamw8bit needs a CUDA GPU"):
        dispatch.run(cfg)
    assert not (tmp_path / "logs").exists()
