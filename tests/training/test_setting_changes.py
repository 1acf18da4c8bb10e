"""A run resumed with other settings: what takes effect, what is refused, and why."""

import json

import pytest
import torch

from components.training.checkpoint_io import AtomicCheckpointIO, CheckpointError
from components.training.setting_changes import ResumeError, checked, differences, inputs_in

MADE = {
    "stage._target_": "components.stages.sft.SFT",
    "stage.optimizer.lr": 1e-3,
    "stage.schedule.kind": "cosine",
    "stage.schedule.warmup_steps": 0,
    "stage.schedule.final_fraction": 0.0,
    "trainer.max_steps": 40,
    "data.batch_size": 4,
    "data (content)": "abc",
    "reads.model": "c0ffee",
    "seed": 0,
}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "step=00000020.ckpt"
    AtomicCheckpointIO().save_checkpoint({"global_step": 20, "inputs": MADE}, path)
    return path


def test_the_same_settings_differ_in_nothing(checkpoint):
    assert checked(checkpoint, inputs_in(checkpoint), dict(MADE)) == []


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("stage.optimizer.lr", 1e-4, "the optimizer and its learning rate are restored"),
        ("stage.schedule.kind", "linear", "the learning-rate schedule"),
        ("data (content)", "xyz", "other data"),
        ("data.val_fraction", 0.2, "the checkpoint's position in its data"),
        ("reads.model", "decaf", "a different artifact"),
        ("seed", 1, "the order of data"),
        ("stage.beta", 0.2, "cannot change in the middle"),
    ],
)
def test_what_cannot_change_is_refused_with_both_values_and_the_reason(checkpoint, setting, value, reason):
    with pytest.raises(ResumeError) as caught:
        checked(checkpoint, inputs_in(checkpoint), MADE | {setting: value})
    told = str(caught.value)
    assert f"{setting}: {MADE.get(setting)} → {value} (refused: {reason}" in told
    assert str(checkpoint) in told and "artifacts.<stage>=<folder>" in told


def test_another_stages_checkpoint_is_named_so_and_nothing_else_is_listed(checkpoint):
    other = {"stage._target_": "components.stages.rm.RewardModel", "stage.optimizer.lr": 4e-4}
    with pytest.raises(ResumeError, match="a checkpoint of another stage") as caught:
        checked(checkpoint, inputs_in(checkpoint), other)
    assert "lr" not in str(caught.value)


def test_a_later_end_takes_effect_and_the_jump_of_the_learning_rate_is_reported(checkpoint):
    """Half of a cosine of 40 steps is 0.5, a quarter of one of 80 is (1 + cos 45°)/2 = 0.854."""
    (line,) = checked(checkpoint, inputs_in(checkpoint), MADE | {"trainer.max_steps": 80})
    assert line.startswith("trainer.max_steps: 40 → 80 (takes effect: training ends there")
    assert "jumps from 0.0005 to 0.000854 now" in line


def test_a_constant_learning_rate_does_not_jump():
    constant = MADE | {"stage.schedule.kind": "constant"}
    (line,), refused = differences(constant, constant | {"trainer.max_steps": 80}, 20)
    assert line == "trainer.max_steps: 40 → 80 (takes effect: training ends there)" and not refused


WSD = MADE | {  # of 40 steps the last 10 decay
    "stage.schedule._target_": "schedule",
    "stage.schedule.kind": "wsd",
    "stage.schedule.decay_share": 0.25,
    "stage.schedule.decay_shape": "linear",
}


@pytest.mark.parametrize("step", [20, 30])
def test_a_stable_run_is_extended_without_a_jump_and_the_new_decay_is_named(step):
    (line,), refused = differences(WSD, WSD | {"trainer.max_steps": 80}, step)
    assert not refused and "jumps" not in line
    assert "the stable phase continues, and the learning rate decays from step 60" in line


def test_a_decaying_run_says_where_to_resume_for_a_longer_one():
    """Of the last 10 steps 5 are over: half of the rate is left."""
    (line,), refused = differences(WSD, WSD | {"trainer.max_steps": 80}, 35)
    assert not refused and "its decay began at step 30, so the learning rate jumps from 0.0005 to 0.001 now" in line
    assert "a checkpoint up to that step continues without it" in line


def test_a_stable_run_can_be_ended_with_a_decay_that_it_did_not_have():
    stable = {n: v for n, v in WSD.items() if n not in ("stage.schedule.decay_shape", "stage.schedule.final_fraction")}
    longer = WSD | {"trainer.max_steps": 50, "stage.schedule.decay_share": 0.2}
    allowed, refused = differences(stable | {"stage.schedule.decay_share": 0.0}, longer, 40)
    assert refused == [] and len(allowed) == 4
    assert "stage.schedule.decay_share: 0.0 → 0.2 (takes effect: from here on; the learning rate" in "".join(allowed)
    assert "the stable phase continues, and the learning rate decays from step 40" in allowed[-1]


def test_another_decay_is_refused_once_it_has_begun_and_so_is_another_kind_of_schedule():
    sooner = WSD | {"stage.schedule.decay_share": 0.75}
    assert differences(WSD, sooner, 9)[1] == []
    assert "discontinuous at this step" in differences(WSD, sooner, 20)[1][0]
    assert "discontinuous at this step" in differences(WSD, WSD | {"stage.schedule.kind": "constant"}, 20)[1][0]


def test_a_jump_of_another_packages_schedule_is_not_computed():
    theirs = {n: v for n, v in MADE.items() if not n.startswith("stage.schedule")}
    theirs |= {"stage.schedule._target_": "staircase", "stage.schedule.kind": "steep"}
    (line,), _ = differences(theirs, theirs | {"trainer.max_steps": 80}, 20)
    assert line == "trainer.max_steps: 40 → 80 (takes effect: training ends there)"


def test_inputs_are_read_from_the_note_if_the_file_has_none(tmp_path):
    path = tmp_path / "step=00000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"global_step": 1, "w": torch.zeros(1)}, path)
    assert inputs_in(path) is None
    (tmp_path / "inputs.json").write_text(json.dumps(MADE))
    assert inputs_in(path) == MADE


def test_a_damaged_checkpoint_is_refused(checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="is damaged"):
        inputs_in(checkpoint)


NO_EXPORT = {"export": "last", "callbacks.checkpoints.export": "last"}
BEST = {"export": "best", "callbacks.checkpoints.export": "best"}
GOES_BY = {name: "val/loss" for name in ("selection.metric", "callbacks.checkpoints.metric")}
GOES_BY |= {name: "min" for name in ("selection.mode", "callbacks.checkpoints.mode")}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (BEST | GOES_BY, NO_EXPORT),
        (NO_EXPORT, NO_EXPORT | GOES_BY | {"callbacks.early_stopping.patience": 3}),
        ({"determinism": False, "trainer.deterministic": False}, {"determinism": True, "trainer.deterministic": True}),
    ],
)
def test_a_change_that_takes_effect_does_so_with_all_settings_that_follow_from_it(before, now):
    allowed, refused = differences(MADE | before, MADE | now, 20)
    assert refused == [] and len(allowed) == len(dict(before.items() ^ now.items()))


def test_the_best_weights_cannot_be_exported_if_validations_kept_none():
    refused = differences(MADE | NO_EXPORT, MADE | BEST | GOES_BY, 20)[1]
    assert [line.partition(" (")[0] for line in refused] == [f"{name}: last → best" for name in sorted(BEST)]
    assert all("validations so far kept no weights" in line for line in refused)


def test_validations_are_not_compared_by_another_metric_than_before():
    other = GOES_BY | {"selection.metric": "val/accuracy"}
    assert len(differences(MADE | BEST | GOES_BY, MADE | BEST | other, 20)[1]) == 1
