"""What every stage does alike."""

import pytest
import torch

from components.training.contract import RunContext
from tests.kit.tiny_stages import attached, dpo, fit, ppo, preference_batch


@pytest.mark.parametrize("seed", [184_467_441, 2**32 - 1])
def test_a_stage_trains_with_every_seed_that_a_run_accepts(seed):
    batch = preference_batch([([3], [[4, 2], [5, 2]], [0.0, 1.0])])
    assert fit(dpo(run=RunContext(seed=seed)), [batch], max_steps=1).global_step == 1


def test_a_sum_over_processes_leaves_the_tensor_that_is_summed_as_it_was(monkeypatch):
    """As a collective does, the strategy writes the result into the tensor that it gets."""
    stage = attached(ppo())
    monkeypatch.setattr(stage.trainer.strategy, "reduce", lambda tensor, reduce_op: tensor.mul_(2))
    own = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for summed in (stage.all_reduced(own), stage.reduced(own, "sum")):
        assert summed.tolist() == [2, 4]
        assert own.tolist() == [1, 2]


def test_on_an_accelerator_metrics_are_computed_only_in_steps_that_log_them(monkeypatch):
    """Finding out which of them are NaN waits for the device."""
    stage = attached(ppo(), log_every_n_steps=0)
    assert stage._due()  # free on a CPU, and the progress line shows it
    monkeypatch.setattr(type(stage), "device", torch.device("cuda"))
    assert not stage._due()
    stage.trainer.log_every_n_steps = 1
    assert stage._due()
