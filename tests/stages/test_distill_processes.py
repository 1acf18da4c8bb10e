"""On-policy distillation with sharded weights: teacher and policy are each gathered where the other is read."""

from functools import partial

import pytest
import torch

from components.artifacts.store import whole_weights
from components.models.lora import TARGETS, LoRA
from components.stages.distill import Distill
from components.training.contract import RunContext
from tests.kit.several import STRATEGIES, GivenResponses, Rollouts, together
from tests.kit.tiny_stages import PROMPTS, Batches, ListLogger, distill, keeper, quiet_fit, trainer

GivenDistill = type("GivenDistill", (GivenResponses, Distill), {})
ONE = (None, 1)
ADAPTERS = LoRA(rank=2, alpha=4.0, dropout=0.0, targets=TARGETS)


def distilled(rank: int, way: tuple[str | None, int], lora: LoRA | None = None):
    """The policy's weights after two rollouts, the teacher's, and what was logged."""
    strategy, processes = way
    run = RunContext(lora=lora)
    stage = distill(GivenDistill, divergence="jsd", optimizer=keeper(0.1), epochs=1, minibatches=1, run=run)
    loader = Rollouts(stage, *([PROMPTS[:5], PROMPTS[5:]] if processes == 2 else [PROMPTS]))
    several = {"strategy": STRATEGIES[strategy](), "devices": processes} if strategy else {}
    logger = ListLogger()
    quiet_fit(
        trainer(max_steps=2, limit_val_batches=0, gradient_clip_val=0.5, logger=logger, **several),
        stage,
        loader,
        Batches([]),
    )
    return whole_weights(stage.policy), whole_weights(stage.teacher), logger.logged


@pytest.mark.parametrize(
    ("way", "lora"),
    [
        pytest.param(("fsdp", 1), None, id="one, all weights"),
        pytest.param(("fsdp", 2), None, id="two, all weights", marks=pytest.mark.slow),
        pytest.param(("fsdp", 2), ADAPTERS, id="two, adapters", marks=pytest.mark.slow),
    ],
)
def test_sharded_processes_learn_what_one_process_learns_and_report_the_same(way, lora, tmp_path):
    [(policy, teacher, logged)] = together(partial(distilled, way=ONE, lora=lora), tmp_path / "one", 1)
    ranks = together(partial(distilled, way=way, lora=lora), tmp_path / "sharded", way[1])
    before = whole_weights(distill_start(lora))
    assert max(float((policy[name] - before[name]).abs().max()) for name in policy) > 1e-3
    for own_policy, own_teacher, _ in ranks:
        assert own_policy.keys() == policy.keys()
        for name in policy:
            torch.testing.assert_close(own_policy[name], policy[name], atol=1e-5, rtol=0)
        assert all(torch.equal(own_teacher[name], teacher[name]) for name in teacher)
    found = ranks[0][2]
    assert found.keys() == logged.keys() and {"train/loss", "rollout/reverse_kl", "rollout/response_kl"} <= found.keys()
    for name in (name for name in logged if not name.startswith("rollout/seconds_")):
        values = [[value for _, value in run[name]] for run in (found, logged)]
        assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-5), name


def distill_start(lora: LoRA | None):
    """The policy before training."""
    stage = distill(run=RunContext(lora=lora))
    stage.configure_model()
    return stage.policy
