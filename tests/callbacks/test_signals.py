import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml

from components.callbacks.checkpoints import Checkpoints
from components.callbacks.sample_table import SampleTable
from components.callbacks.signals import SIGNALS, GracefulStop, seconds_of
from components.training.checkpoint_io import latest
from tests.kit.tiny_run import Send, Stream, Tiny, Validated, trainer

HERE = Path(__file__).parent


def fit(folder, number, *batches, stop=None, length=1000, **settings):
    stop = stop or GracefulStop()
    callbacks = [Send(number, *batches), stop, Checkpoints(folder)]
    run = trainer(callbacks, enable_checkpointing=True, max_steps=50, **settings)
    run.fit(Tiny(), Stream(length), ckpt_path=latest(folder))
    return run, stop


STATUS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]


@pytest.mark.parametrize("number, status", STATUS)
def test_a_signal_finishes_the_step_saves_and_stops(tmp_path, number, status):
    run, stop = fit(tmp_path, number, 4)
    assert run.global_step == 5
    assert latest(tmp_path).name == "step=00000005.ckpt"
    assert (stop.stopped_by, stop.exit_status) == (number, status)


def test_a_run_that_is_stopped_and_resumed_equals_an_uninterrupted_one(tmp_path):
    straight, _ = fit(tmp_path / "a", signal.SIGTERM, length=20)
    before, _ = fit(tmp_path / "b", signal.SIGTERM, 4, length=20)
    after, _ = fit(tmp_path / "b", signal.SIGTERM, length=20)
    runs = [run.lightning_module for run in (straight, before, after)]
    assert runs[1].seen + runs[2].seen == runs[0].seen
    assert torch.equal(runs[2].weight, runs[0].weight)


class Counted(Validated):
    """Counts what it computes when a step is over; sends this process SIGTERM where `at` says: (hook, step)."""

    def __init__(self, *at: tuple[str, int]) -> None:
        super().__init__()
        self.at, self.done, self.validated = set(at), [], []

    def note(self, hook):
        if (hook, self.global_step) in self.at:
            os.kill(os.getpid(), signal.SIGTERM)

    def training_step(self, batch, batch_idx):
        self.note("training_step")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.note("validation_step")
        self.validated.append((self.global_step, batch_idx))
        super().validation_step(batch, batch_idx)

    def sample_texts(self):
        self.done.append("sample_texts")
        return [{"prompt": "Who?"}]

    def histograms(self):
        self.done.append("histograms")
        return {}

    def on_validation_end(self):
        self.done.append("on_validation_end")

    def on_train_epoch_end(self):
        self.done.append("on_train_epoch_end")

    def on_train_end(self):
        self.done.append("on_train_end")

    def on_fit_end(self):
        self.done.append("on_fit_end")
        self.note("on_fit_end")


class AtTheEnd(L.Callback):
    """Whatever else may compute at an end."""

    def __init__(self) -> None:
        self.done = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.done.append("on_train_epoch_end")

    def on_train_end(self, trainer, pl_module):
        self.done.append("on_train_end")

    def on_fit_end(self, trainer, pl_module):
        self.done.append("on_fit_end")


def fit_counted(folder, *at, **settings):
    module, stop, other = Counted(*at), GracefulStop(), AtTheEnd()
    kept = Checkpoints(folder, every_n_steps=50, export="best", metric="val/loss")
    settings = {"max_steps": 12, "val_check_interval": 4} | settings
    run = trainer([stop, SampleTable(every_n_steps=6), other, kept], enable_checkpointing=True, **settings)
    run.fit(module, Stream(8), Stream(3), ckpt_path=latest(folder))
    return module, stop, other, kept


@pytest.mark.parametrize(
    ("at", "step"),
    [
        (("training_step", 5), 6),  # a table is due
        (("training_step", 3), 4),  # a validation is due
        (("training_step", 7), 8),  # and the epoch ends
        (("training_step", 11), 12),  # the last step
        (("validation_step", 8), 8),
        (("validation_step", 12), 12),
    ],
)
def test_after_a_signal_only_the_step_is_computed_and_a_resumed_run_does_the_rest(tmp_path, at, step):
    straight = fit_counted(tmp_path / "straight")
    before, stop, other, _ = fit_counted(tmp_path / "stopped", at)
    assert (before.global_step, stop.exit_status) == (step, 143)
    assert latest(tmp_path / "stopped").name == f"step={step:08d}.ckpt"
    ordinary = [hook for hook in before.done if hook not in ("on_validation_end", "sample_texts", "histograms")]
    assert ordinary == ["on_train_epoch_end"] * ((step - 1) // 8)
    assert other.done == ordinary
    assert before.done.count("on_validation_end") == (step - 1) // 4
    assert before.done.count("sample_texts") == (step - (at[0] == "training_step")) // 6  # of earlier steps
    after, stop, _, kept = fit_counted(tmp_path / "stopped")
    assert stop.exit_status == 0
    assert before.seen + after.seen == straight[0].seen
    assert torch.equal(after.weight, straight[0].weight)
    whole = [one for one in before.validated if one not in after.validated] + after.validated
    assert whole == straight[0].validated
    assert kept.exported == straight[3].exported
    assert "on_fit_end" in after.done
    assert "sample_texts" in after.done


def test_a_signal_after_the_last_step_ends_the_process_at_once_and_the_rest_is_repeated(tmp_path):
    with pytest.raises(SystemExit) as stopped:
        fit_counted(tmp_path, ("on_fit_end", 12))
    assert stopped.value.code == 143
    with pytest.raises(SystemExit):
        fit_counted(tmp_path, ("on_fit_end", 12))  # resumed from its last step, too
    after = fit_counted(tmp_path)[0]
    assert (after.seen, after.done.count("on_fit_end")) == ([], 1)


def test_a_signal_before_the_first_step_ends_training_there(tmp_path):
    module, stop, _, _ = fit_counted(tmp_path, ("validation_step", 0), num_sanity_val_steps=1)
    assert (module.seen, stop.exit_status, latest(tmp_path)) == ([], 143, None)


def test_of_all_callbacks_the_one_that_stops_comes_first():
    """A callback before it would still compute at an end."""
    listed = yaml.safe_load((HERE.parents[1] / "conf/callbacks/default.yaml").read_text())
    assert next(iter(listed)) == "graceful_stop"


def test_past_its_deadline_a_run_saves_and_stops_and_the_next_one_has_its_own(tmp_path):
    stop = GracefulStop()
    stop.deadline = time.monotonic()
    run, stop = fit(tmp_path, signal.SIGTERM, stop=stop)
    assert (run.global_step, stop.stopped_by, stop.exit_status, stop.reason) == (1, None, 124, "trainer.max_time")
    assert latest(tmp_path).name == "step=00000001.ckpt"
    run, stop = fit(tmp_path, signal.SIGTERM)
    assert (run.global_step, stop.exit_status, stop.reason) == (50, 0, "")


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("00:00:00:05", 5), ("01:02:03:04", 93784), ({"hours": 2}, 7200), ({"minutes": 0.5}, 30), (None, float("inf"))],
)
def test_a_limit_of_time_is_read_as_lightning_writes_it(given, seconds):
    assert seconds_of(given) == seconds


@pytest.mark.parametrize(
    "given", ["", "5", "1:2:3", "00:00:00:00", "-1:00:00:00", {"hours": -1}, {"years": 1}, {"hours": "x"}]
)
def test_another_limit_of_time_is_refused(given):
    with pytest.raises(ValueError, match="trainer.max_time: expected days:hours:minutes:seconds"):
        seconds_of(given)


def test_without_a_signal_nothing_is_reported(tmp_path):
    run, stop = fit(tmp_path, signal.SIGTERM)
    assert (run.global_step, stop.stopped_by, stop.exit_status) == (50, None, 0)


def test_all_micro_batches_of_the_step_are_finished(tmp_path):
    run, _ = fit(tmp_path, signal.SIGTERM, 4, accumulate_grad_batches=4)  # batch 4 opens the second step
    assert run.global_step == 2
    assert run.fit_loop.epoch_loop.batch_progress.total.completed == 8


def test_a_signal_overrides_a_minimum_length_of_training(tmp_path):
    assert fit(tmp_path, signal.SIGTERM, 1, min_steps=20)[0].global_step == 2


def test_the_earlier_handlers_are_restored(tmp_path):
    before = [signal.getsignal(number) for number in SIGNALS]
    fit(tmp_path, signal.SIGTERM, 1)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_callback_used_again_starts_afresh(tmp_path):
    _, stop = fit(tmp_path / "a", signal.SIGTERM, 1)
    run, stop = fit(tmp_path / "b", signal.SIGTERM, stop=stop)
    assert (run.global_step, stop.stopped_by) == (50, None)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        fit(tmp_path, signal.SIGINT, 3, 4, accumulate_grad_batches=10)
    assert signal.getsignal(signal.SIGINT) == handler
    assert latest(tmp_path) is None


def test_the_user_is_notified_on_stderr(tmp_path, capfd):
    fit(tmp_path, signal.SIGINT, 1)
    assert "SIGINT: stopping after this step; Ctrl-C again stops at once" in capfd.readouterr().err


SCRIPT = """
import sys, time, signal
from tests.kit.tiny_run import Send, Stream, Tiny, Validated, trainer
from components.callbacks.checkpoints import Checkpoints
from components.callbacks.signals import GracefulStop

class Slow(Tiny):
    def training_step(self, batch, batch_idx):
        print("in step", batch_idx + 1, flush=True)
        time.sleep(0.2)
        return super().training_step(batch, batch_idx)

stop = GracefulStop()
settings = eval(sys.argv[2])
callbacks = [Send(signal.SIGTERM, 2, rank=1), stop, Checkpoints(sys.argv[1])]
run = trainer(callbacks, enable_checkpointing=True, max_steps=100, **settings)
run.fit(Slow(), Stream())
if settings and run.is_global_zero:
    time.sleep(12)  # Lightning looks every 5 seconds whether a process that it started has ended, and how
sys.exit(stop.exit_status)
"""


def start(folder, settings):
    (folder / "run.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent.parent}", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(folder / "run.py"), str(folder / "checkpoints"), repr(settings)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_sigterm_to_a_running_program_ends_it_with_a_checkpoint_and_status_143(tmp_path):
    with start(tmp_path, {}) as process:
        next(line for line in process.stdout if line.startswith("in step 3"))
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(timeout=300) == 143
    assert latest(tmp_path / "checkpoints").name == "step=00000003.ckpt"


@pytest.mark.slow
def test_with_two_processes_a_signal_to_one_stops_both_after_the_same_step(tmp_path):
    with start(tmp_path, {"strategy": "ddp", "devices": 2}) as process:
        process.stdout.read()
        assert process.wait(timeout=300) == 143
    assert latest(tmp_path / "checkpoints").name == "step=00000003.ckpt"
