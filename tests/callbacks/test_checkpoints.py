import pytest
import torch
from lightning import Callback

from components.callbacks import save_clock
from components.callbacks.checkpoints import Checkpoints
from components.training.checkpoint_io import CheckpointError, latest
from tests.kit.tiny_run import Stream, Tiny, trainer


def fit(folder, *, every=10, keep=2, resume=None, loader=None, callbacks=(), **settings):
    """Trains; returns the module and the names of the files in the folder."""
    module = Tiny()
    checkpoints = Checkpoints(folder, every_n_steps=every, keep=keep)
    run = trainer([*callbacks, checkpoints], enable_checkpointing=True, **settings)
    run.fit(module, loader or Stream(), ckpt_path=resume)
    return module, sorted(path.name for path in folder.iterdir())


def test_it_saves_every_n_steps_and_the_end_and_keeps_the_last_two(tmp_path):
    assert fit(tmp_path, every=3, max_steps=8)[1] == ["step=00000006.ckpt", "step=00000008.ckpt"]


def test_more_can_be_kept(tmp_path):
    names = fit(tmp_path, every=3, keep=3, max_steps=9)[1]
    assert names == [f"step={step:08d}.ckpt" for step in (3, 6, 9)]


def test_an_end_by_epochs_is_saved_too(tmp_path):
    assert fit(tmp_path, max_epochs=2, loader=Stream(4))[1] == ["step=00000008.ckpt"]


def test_micro_batches_are_not_steps(tmp_path):
    names = fit(tmp_path, every=2, max_steps=5, accumulate_grad_batches=3, keep=9)[1]
    assert names == [f"step={step:08d}.ckpt" for step in (2, 4, 5)]


@pytest.mark.parametrize(
    "pause, end, length",
    [({"max_steps": steps}, {"max_steps": 8}, length) for steps in (3, 4) for length in (4, 5, 1000)]
    + [({"max_epochs": 1}, {"max_epochs": 2}, 4), ({"max_epochs": 2}, {"max_epochs": 3}, 4)],
)
def test_resuming_with_a_later_end_equals_never_having_stopped(tmp_path, pause, end, length):
    def run(folder, settings, resume=None):
        return fit(folder, loader=Stream(length), resume=resume, **({"max_epochs": -1} | settings))[0]

    straight = run(tmp_path / "a", end)
    before = run(tmp_path / "b", pause)
    after = run(tmp_path / "b", end, resume=latest(tmp_path / "b"))
    assert before.seen + after.seen == straight.seen
    assert torch.equal(straight.weight, after.weight)


def test_a_finished_run_that_is_resumed_writes_nothing(tmp_path):
    fit(tmp_path, max_steps=4)
    before = latest(tmp_path).stat().st_mtime_ns
    assert fit(tmp_path, max_steps=4, resume=latest(tmp_path))[1] == ["step=00000004.ckpt"]
    assert latest(tmp_path).stat().st_mtime_ns == before


def test_a_damaged_file_falls_back_to_the_one_before_with_a_warning(tmp_path):
    fit(tmp_path, every=3, max_steps=6)
    newest = tmp_path / "step=00000006.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="skipped: .*step=00000006.ckpt is damaged"):
        assert latest(tmp_path) == tmp_path / "step=00000003.ckpt"


def test_when_all_are_damaged_it_does_not_silently_start_over(tmp_path):
    (tmp_path / "step=00000003.ckpt").write_bytes(b"half of a")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="all 1 checkpoints .* are damaged"):
        latest(tmp_path)


def test_without_checkpoints_there_is_no_latest(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "never made") is None


def test_files_ahead_of_the_step_resumed_from_are_set_aside_and_half_written_ones_removed(tmp_path):
    fit(tmp_path, every=3, max_steps=6)
    (tmp_path / "step=00000009.ckpt.tmp").write_bytes(b"half of a")
    with pytest.warns(UserWarning, match="step=00000006.ckpt is ahead of step 3"):
        _, names = fit(tmp_path, every=10, max_steps=4, resume=tmp_path / "step=00000003.ckpt")
    assert names == ["step=00000003.ckpt", "step=00000004.ckpt", "step=00000006.ckpt.old"]
    assert latest(tmp_path).name == "step=00000004.ckpt"


def test_counts_below_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1, got 0 and 2"):
        Checkpoints(tmp_path, every_n_steps=0)
    with pytest.raises(ValueError, match="every_minutes above 0, got 0"):
        Checkpoints(tmp_path, every_minutes=0)


class Clock(Callback):
    """Time that passes in steps alone, of these durations in seconds."""

    def __init__(self, durations, monkeypatch):
        self.durations, self.now, self.asked = durations, 1000.0, 0
        monkeypatch.setattr(save_clock, "time", self)

    def monotonic(self):
        self.asked += 1
        return self.now

    def on_train_batch_end(self, trainer, *_):
        self.now += self.durations[trainer.global_step - 1]


@pytest.mark.parametrize(
    ("durations", "steps"),
    [
        ([60] * 17, (5, 10, 15, 17)),
        ([200] + [60] * 16, (3, 8, 13, 17)),  # the first one compiles: 200 + 60 + 60 seconds, then 5 × 60
        ([400] * 4, (1, 2, 3, 4)),
    ],
)
def test_it_saves_after_so_many_minutes_too(tmp_path, monkeypatch, durations, steps):
    clock = Clock(durations, monkeypatch)
    checkpoints = Checkpoints(tmp_path, every_minutes=5, keep=9)
    trainer([clock, checkpoints], enable_checkpointing=True, max_steps=len(durations)).fit(Tiny(), Stream())
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step={step:08d}.ckpt" for step in steps]


def test_long_runs_ask_for_the_time_at_few_of_their_steps(tmp_path, monkeypatch):
    """A save after 256 steps of 1/128 s; the time is asked for after 1, 2, 4, … 256 steps, then after 512."""
    clock = Clock([1 / 128] * 700, monkeypatch)
    checkpoints = Checkpoints(tmp_path, every_minutes=2 / 60, keep=9)
    trainer([clock, checkpoints], enable_checkpointing=True, max_steps=700).fit(Tiny(), Stream())
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step={n:08d}.ckpt" for n in (256, 512, 700)]
    assert clock.asked <= 20
