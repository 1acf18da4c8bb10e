"""Warnings during a run: each once, in the log and the loggers, and not again after resuming."""

import logging

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from components.callbacks import diagnosis
from components.callbacks.checkpoints import Checkpoints
from components.callbacks.diagnosis import NEWEST, OLDEST, QUIET, Diagnosis
from components.loggers.tensorboard_log import TensorBoard
from tests.kit.tiny_run import Stream, Tiny, trainer


class Clipped(Tiny):
    """Logs a clip fraction that is too high from its third step on, and a first ratio that is off in rollout 1."""

    max_new_tokens = 24

    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx % 4 == 0:
            for logger in self.loggers:
                logger.log_metrics({"rollout/score": 1.0}, step=self.global_step)

    def training_step(self, batch, batch_idx):
        self.log("train/clip_fraction", 0.1 if batch_idx < 3 else 0.9)
        self.log("train/ratio_max", 1.5 if batch_idx in (2, 3, 4) else 1.0)
        return super().training_step(batch, batch_idx)


def warned(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and r.name == diagnosis.__name__]


def test_a_rule_warns_once_in_the_log_and_in_tensorboard(tmp_path, caplog):
    logger = TensorBoard(str(tmp_path), "PPO")
    trainer([Diagnosis()], logger=logger, max_steps=12).fit(Clipped(), Stream())
    ratio, clip = warned(caplog)
    assert clip.startswith("step 4, much clipped: 63% of the updates are clipped, healthy is up to 20%. Likely")
    assert "stage.optimizer.lr" in clip
    assert ratio.startswith("step 4, ratio off: the largest ratio at a rollout's first minibatch is 1.500, expected 1")
    texts = EventAccumulator(str(tmp_path)).Reload().Tensors("PPO diagnosis/text_summary")
    assert [text.step for text in texts] == [4, 4]
    assert texts[0].tensor_proto.string_val[0].decode().startswith("**ratio off**: the largest ratio")


def test_the_first_minibatch_of_each_rollout_is_checked_even_if_steps_are_rarely_logged():
    callback = Diagnosis()
    trainer([callback], max_steps=12, log_every_n_steps=6).fit(Clipped(), Stream())
    assert callback.history["first/ratio_max"] == [1.0, 1.5, 1.0]
    assert callback.history["train/clip_fraction"] == [pytest.approx(0.9)] * 2
    assert callback.history["max_new_tokens"] == [24.0]


class Accumulated(Clipped):
    """Logs the largest ratio once per optimizer step of two batches: 1 in the first step of a rollout, then 1.5."""

    def training_step(self, batch, batch_idx):
        if batch_idx % 2:
            self.log("train/ratio_max", 1.0 if batch_idx % 4 == 1 else 1.5)
        return Tiny.training_step(self, batch, batch_idx)


def test_with_accumulated_gradients_the_ratio_of_a_rollouts_first_step_is_checked_not_of_the_step_before(caplog):
    callback = Diagnosis()
    trainer([callback], max_steps=6, accumulate_grad_batches=2).fit(Accumulated(), Stream())
    assert callback.history["first/ratio_max"] == [1.0, 1.0, 1.0]
    assert warned(caplog) == []


def told(callback: Diagnosis, monkeypatch) -> list[int]:
    """Where it warns, from now on; a training of 1000 steps."""
    steps: list[int] = []
    callback._total = 1000
    monkeypatch.setattr(callback, "_warn", lambda name, text, step: steps.append(step))
    return steps


def test_a_warning_is_repeated_only_after_checks_without_a_finding(monkeypatch):
    callback = Diagnosis()
    steps = told(callback, monkeypatch)
    spread = [0.3] * 3 + [0.1] * (QUIET - 1) + [0.3] * 3 + [0.1] * QUIET + [0.3] * 3
    for step, value in enumerate(spread):
        callback.receive({"val/ece": value}, step)
    assert steps == [0, 3 + (QUIET - 1) + 3 + QUIET]


def test_metrics_that_are_not_watched_trigger_no_check(monkeypatch):
    callback = Diagnosis()
    told(callback, monkeypatch)
    callback.receive({"budget/flops": 1.0, "epoch": 0}, 5)
    assert callback.history == {}


def test_the_history_of_a_long_run_keeps_its_first_and_latest_values(monkeypatch):
    callback = Diagnosis()
    told(callback, monkeypatch)
    for step in range(1000):
        callback.receive({"rollout/score": float(step)}, step)
    kept = callback.history["rollout/score"]
    assert kept == [*map(float, range(OLDEST)), *map(float, range(1000 - NEWEST, 1000))]
    assert callback.history["progress"] == [0.999]


def test_a_resumed_run_neither_forgets_nor_repeats(tmp_path, caplog):
    saving = {"enable_checkpointing": True, "folder": tmp_path}
    trainer([Diagnosis(), Checkpoints(tmp_path, 6)], max_steps=6, **saving).fit(Clipped(), Stream())
    assert len(warned(caplog)) == 2
    callback = Diagnosis()
    path = tmp_path / "step=00000006.ckpt"
    run = trainer([callback, Checkpoints(tmp_path, 6)], max_steps=9, **saving)
    run.fit(Clipped(), Stream(), ckpt_path=path, weights_only=True)
    assert len(warned(caplog)) == 2
    assert callback.history["rollout/score"] == [1.0, 1.0, 1.0]  # of steps 0, 4 and 8


def test_a_healthy_run_is_silent(caplog):
    trainer([Diagnosis()], max_steps=6).fit(Tiny(), Stream())
    assert warned(caplog) == []
