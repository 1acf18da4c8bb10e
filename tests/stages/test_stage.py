import pytest

from components.training.contract import RunContext
from tests.kit.tiny_stages import dpo, fit, preference_batch


@pytest.mark.parametrize("seed", [184_467_441, 2**32 - 1])
def test_a_stage_trains_with_every_seed_that_a_run_accepts(seed):
    batch = preference_batch([([3], [[4, 2], [5, 2]], [0.0, 1.0])])
    assert fit(dpo(run=RunContext(seed=seed)), [batch], max_steps=1).global_step == 1
