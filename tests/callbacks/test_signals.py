import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from tiny_run import Stream, Tiny, Validated, trainer

from components.callbacks.checkpoints import Checkpoints, latest
from components.callbacks.signals import SIGNALS, GracefulStop, seconds_of

HERE = Path(__file__).parent


class Send(L.Callback):
    """Sends this process a signal in the middle of the given batches, rank `rank` only."""

    def __init__(self, number, *batches, rank=0):
        self.number, self.batches, self.rank = number, batches, rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx in self.batches and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)


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


def test_a_run_that_is_stopped_and_resumed_equals_one_that_never_was(tmp_path):
    straight, _ = fit(tmp_path / "a", signal.SIGTERM, length=20)
    before, _ = fit(tmp_path / "b", signal.SIGTERM, 4, length=20)
    after, _ = fit(tmp_path / "b", signal.SIGTERM, length=20)
    runs = [run.lightning_module for run in (straight, before, after)]
    assert runs[1].seen + runs[2].seen == runs[0].seen
    assert torch.equal(runs[2].weight, runs[0].weight)


@pytest.mark.parametrize(("batch", "validated"), [(4, []), (6, [7])])
def test_a_signal_brings_no_validation_that_was_not_due(tmp_path, batch, validated):
    """It would keep a user waiting, and be one more than an unbroken run has, for whoever counts them."""
    steps = []

    class Noted(Validated):
        def on_validation_start(self):
            steps.append(self.global_step)

    stop = GracefulStop()
    run = trainer([Send(signal.SIGTERM, batch), stop], max_steps=50, val_check_interval=7)
    run.fit(Noted(), Stream(), Stream(3))
    assert (run.global_step, stop.exit_status, steps) == (batch + 1, 143, validated)


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


def test_a_minimal_length_of_training_does_not_outrank_the_signal(tmp_path):
    assert fit(tmp_path, signal.SIGTERM, 1, min_steps=20)[0].global_step == 2


def test_the_earlier_handlers_come_back(tmp_path):
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


def test_the_user_is_told_on_the_error_stream(tmp_path, capfd):
    fit(tmp_path, signal.SIGINT, 1)
    assert "SIGINT: stopping after this step; Ctrl-C again stops at once" in capfd.readouterr().err


SCRIPT = """
import sys, time, signal
from tiny_run import Stream, Tiny, Validated, trainer
from test_signals import Send
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
