"""The cost of a run, over ranks, rollouts and interruptions."""

from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from components.callbacks.budget import Budget
from components.callbacks.checkpoints import Checkpoints
from components.loggers.tensorboard_log import TensorBoard
from components.training.contract import Spent
from tests.kit.tiny_run import Stream, Tiny, trainer
from tests.kit.tiny_stages import ListLogger

NAMES = ("budget/train_tokens", "budget/generated_tokens", "budget/flops")


class Drawing(Tiny):
    """10 FLOPs per token trained on; before every second batch a rollout of 7 tokens for 100 FLOPs."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts = Spent()

    def training_step(self, batch, batch_idx):
        if batch_idx % 2 == 0:
            self.draw(flops=100)
        return super().training_step(batch, batch_idx)

    def draw(self, flops):
        self.rollouts = Spent(self.rollouts.generated_tokens + 7, self.rollouts.flops + flops)

    def spent(self):
        return self.rollouts

    def flops_per_token(self):
        return 10.0


def spent_by(module, folder, *, max_steps, resume=None, **settings) -> tuple[float, ...]:
    saving = {"enable_checkpointing": True, "folder": folder}
    run = trainer([Budget(), Checkpoints(folder, 3)], max_steps=max_steps, **saving, **settings)
    run.fit(module, Stream(), ckpt_path=resume, weights_only=True)
    return tuple(float(run.callback_metrics[name]) for name in NAMES if name in run.callback_metrics)


def test_tokens_and_operations_add_up(tmp_path):
    """6 batches of 5 real tokens; 3 rollouts. 30 · 10 + 3 · 100 FLOPs."""
    assert spent_by(Drawing(), tmp_path, max_steps=6) == (30, 21, 600)


def test_every_micro_batch_counts(tmp_path):
    assert spent_by(Drawing(), tmp_path, max_steps=2, accumulate_grad_batches=3) == (30, 21, 600)


def test_a_module_without_rollouts_or_a_flops_formula(tmp_path):
    assert spent_by(Tiny(), tmp_path, max_steps=6) == (30, 0)


@pytest.mark.parametrize("stop", [3, 4, 6], ids=["between rollouts", "within one", "at its last step"])
def test_an_interrupted_run_costs_the_same_as_an_uninterrupted_one(stop, tmp_path):
    spent_by(Drawing(), tmp_path, max_steps=stop)
    resumed = spent_by(Drawing(), tmp_path, max_steps=6, resume=tmp_path / f"step={stop:08d}.ckpt")
    assert resumed == (30, 21, 600)


def test_ranks_are_summed():
    """Two ranks with the same work: all totals double."""
    reduce = lambda tensor, reduce_op: {"sum": 2 * tensor}[reduce_op]
    both = SimpleNamespace(
        world_size=2,
        global_step=1,
        loggers=[],
        callback_metrics={},
        strategy=SimpleNamespace(root_device=torch.device("cpu"), reduce=reduce),
    )
    budget, module = Budget(), Drawing()
    budget.on_train_start(SimpleNamespace(global_step=0), module)
    module.draw(flops=10**15 + 1)
    budget.on_train_batch_end(both, module, None, next(iter(Stream())), 0)
    budget.on_train_end(both, module)
    assert budget.totals == {"train_tokens": 10, "generated_tokens": 14, "rollout_flops": 2 * 10**15 + 2}
    checkpoint: dict = {}
    budget.on_save_checkpoint(both, module, checkpoint)
    assert checkpoint == {"budget": dict(budget.totals)}  # nothing is counted twice


def test_a_second_module_is_counted_from_its_own_start(tmp_path):
    budget = Budget()
    for _ in range(2):
        trainer([budget], max_steps=2).fit(Drawing(), Stream())
    assert budget.totals == {"train_tokens": 20, "generated_tokens": 14, "rollout_flops": 200}


def test_the_totals_are_logged_every_n_steps_and_at_the_end(tmp_path):
    logger = TensorBoard(str(tmp_path), "PPO")
    trainer([Budget(every_n_steps=4)], max_steps=10, logger=logger).fit(Drawing(), Stream())
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("_/budget/train_tokens")] == [(4, 20), (8, 40), (10, 50)]
    assert [e.value for e in events.Scalars("_/budget/flops")] == [200 + 200, 400 + 400, 500 + 500]


def test_a_last_step_at_which_they_are_due_is_logged_once():
    logger = ListLogger()
    trainer([Budget(every_n_steps=4)], max_steps=8, logger=logger).fit(Drawing(), Stream())
    assert logger.logged["budget/train_tokens"] == [(4, 20), (8, 40)]


def test_every_n_steps_is_a_number_of_steps():
    with pytest.raises(ValueError, match="every_n_steps of at least 1, got 0"):
        Budget(every_n_steps=0)
