"""The logged gradient norm is that of the whole model, however it is sharded."""

import pytest
from lightning.pytorch.strategies import DDPStrategy

from components.stages.sft import SFT
from components.training.fsdp import FullySharded
from tests.kit.several import together
from tests.kit.tiny_stages import CONSTANT, END, Batches, ListLogger, adam, causal, lm_batch, quiet_fit, trainer

TEXTS = [([1, 4], [5, 6, END]), ([1, 7], [3, 8, 9, END]), ([1, 3, 9], [10, END]), ([1, 12], [4, 4, 11, END])]


def norms(world_size: int, strategy=None) -> list[float]:
    parts = [TEXTS[:2], TEXTS[2:]] if world_size == 2 else [TEXTS]
    logger, stage = ListLogger(), SFT(model=causal, schedule=CONSTANT, optimizer=adam(1e-2))
    several = {"strategy": strategy(), "devices": world_size} if strategy else {}
    run = trainer(max_steps=3, limit_val_batches=0, gradient_clip_val=0.5, logger=logger, **several)
    quiet_fit(run, stage, Batches(*([lm_batch(part)] * 3 for part in parts)), Batches([]))
    return logger["train/grad_norm"]


@pytest.mark.parametrize("strategy", [DDPStrategy, FullySharded], ids=["ddp", "fsdp"])
def test_two_processes_log_the_norm_of_one(strategy, tmp_path):
    one = norms(1)
    assert len(one) == 3 and min(one) > 0.5
    first, _ = together(lambda rank: norms(2, strategy), tmp_path)
    assert first == pytest.approx(one, rel=1e-4)
