"""When a run resumes from a checkpoint, how that changes its inputs, and what the messages say."""

import hashlib

import pytest
import torch

from components.artifacts import lineage
from components.artifacts.store import ArtifactError, write_artifact
from components.training import resuming, setting_changes
from components.training.checkpoint_io import BEST, AtomicCheckpointIO
from components.training.setting_changes import RESUMED, ResumeError

INPUTS = {"seed": 1, "stage.lr": 0.1, "data (content)": "abc"}


LOGGED = ("events.out.tfevents.1", "csv/metrics.csv", "csv/samples.jsonl", "wandb/run_id", "mlflow_run_id")


@pytest.fixture
def unfinished(tmp_path):
    """A stage folder with a checkpoint made from INPUTS and curves."""
    assert resuming.checkpoint_to_resume(tmp_path, INPUTS, resume="auto", force=False) is None
    path = tmp_path / "checkpoints/step=00000004.ckpt"
    content = {"state_dict": {"w": torch.zeros(1)}, "global_step": 4, "inputs": INPUTS}
    AtomicCheckpointIO().save_checkpoint(content, path)
    for logged in LOGGED:
        (tmp_path / logged).parent.mkdir(exist_ok=True)
        (tmp_path / logged).write_text("")
    return tmp_path


@pytest.mark.parametrize("force", [False, "changed"])
def test_an_unfinished_run_with_the_same_inputs_resumes(unfinished, force):
    found = resuming.checkpoint_to_resume(unfinished, INPUTS, resume="auto", force=force)
    assert found.name == "step=00000004.ckpt"
    assert all((unfinished / logged).exists() for logged in LOGGED)


@pytest.mark.parametrize(
    ("inputs", "resume", "force"),
    [(INPUTS, "never", False), (INPUTS, "auto", True), (INPUTS | {"seed": 2}, "auto", "changed")],
)
def test_starting_from_scratch_leaves_nothing_of_the_earlier_run(unfinished, inputs, resume, force):
    assert resuming.checkpoint_to_resume(unfinished, inputs, resume=resume, force=force) is None
    assert not list(unfinished.glob("checkpoints/*.ckpt"))
    assert not any((unfinished / logged).exists() for logged in LOGGED)


def test_checkpoints_of_other_settings_are_not_deleted_without_a_request(unfinished):
    with pytest.raises(ArtifactError, match=r"(?s)other settings:\n  seed: 1 → 2 \(refused.*resume=never.*run=<name>"):
        resuming.checkpoint_to_resume(unfinished, INPUTS | {"seed": 2}, resume="auto", force=False)
    assert list(unfinished.glob("checkpoints/*.ckpt"))


@pytest.mark.parametrize("note", [None, "", '{"seed": 1', "[1]", "[" * 100_000])
def test_checkpoints_whose_note_is_lost_or_damaged_are_not_deleted_without_a_request(unfinished, note):
    file = unfinished / "checkpoints/inputs.json"
    file.unlink() if note is None else file.write_text(note)
    with pytest.raises(ArtifactError, match=r"inputs.json.* is lost or damaged.*resume=<file.ckpt>.*resume=never"):
        resuming.checkpoint_to_resume(unfinished, INPUTS, resume="auto", force=False)
    assert list(unfinished.glob("checkpoints/*.ckpt"))
    assert resuming.checkpoint_to_resume(unfinished, INPUTS, resume="never", force=False) is None


def test_a_kill_while_checkpoints_are_deleted_leaves_none_to_resume_from(unfinished, monkeypatch):
    """Half of them would otherwise be taken for a run's own."""
    monkeypatch.setattr(lineage.shutil, "rmtree", lambda path, **_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        resuming.checkpoint_to_resume(unfinished, INPUTS, resume="never", force=False)
    monkeypatch.undo()
    assert resuming.checkpoint_to_resume(unfinished, INPUTS, resume="auto", force=False) is None
    assert [path.name for path in unfinished.rglob("*") if path.is_file()] == ["inputs.json"]


def test_a_run_that_failed_before_its_first_checkpoint_does_not_block_the_next(tmp_path):
    resuming.checkpoint_to_resume(tmp_path, INPUTS, resume="auto", force=False)
    assert resuming.checkpoint_to_resume(tmp_path, INPUTS | {"seed": 2}, resume="auto", force=False) is None


@pytest.mark.parametrize("inputs", [INPUTS, INPUTS | {"seed": 2}])
def test_a_run_that_was_killed_with_its_best_weights_alone_starts_from_scratch(unfinished, inputs):
    """Training resumes from the checkpoint of a step, and none was written, so its curves begin again too."""
    path = unfinished / "checkpoints/step=00000004.ckpt"
    path.rename(path.with_name(BEST))
    assert resuming.checkpoint_to_resume(unfinished, inputs, resume="auto", force=False) is None
    assert not list(unfinished.glob("checkpoints/*.ckpt"))
    assert not any((unfinished / logged).exists() for logged in LOGGED)


def test_a_checkpoint_that_is_asked_for_must_exist(tmp_path):
    with pytest.raises(ArtifactError, match="no such file"):
        resuming.checkpoint_to_resume(tmp_path, INPUTS, resume=str(tmp_path / "x.ckpt"), force=False)


def test_a_checkpoint_that_is_named_is_resumed_by_the_same_command_without_its_name_too(unfinished, tmp_path):
    path = unfinished / "checkpoints/step=00000004.ckpt"
    other = tmp_path / "other"
    assert resuming.checkpoint_to_resume(other, INPUTS, resume=str(path), force=False) == path
    assert setting_changes.read_note(other / "checkpoints/inputs.json") == INPUTS


def test_a_named_checkpoint_of_other_settings_is_refused_and_nothing_is_written(unfinished, tmp_path):
    path = unfinished / "checkpoints/step=00000004.ckpt"
    with pytest.raises(ResumeError, match="stage.lr: 0.1 → 0.2"):
        resuming.checkpoint_to_resume(tmp_path / "other", INPUTS | {"stage.lr": 0.2}, resume=str(path), force=False)
    assert not (tmp_path / "other").exists()


def test_changes_that_take_effect_are_logged_before_the_run(unfinished, caplog):
    path = unfinished / "checkpoints/step=00000004.ckpt"
    resuming.checkpoint_to_resume(unfinished, INPUTS | {"trainer.max_steps": 9}, resume=str(path), force=False)
    assert "trainer.max_steps: None → 9 (takes effect: training ends there)" in caplog.text


def test_settings_that_take_effect_need_a_request_and_the_command_is_named(unfinished):
    with pytest.raises(
        ArtifactError, match=r"(?s)trainer.max_steps.*takes effect.*resume=.*step=00000004.ckpt resumes"
    ):
        resuming.checkpoint_to_resume(unfinished, INPUTS | {"trainer.max_steps": 9}, resume="auto", force=False)


def test_the_best_weights_next_to_a_named_checkpoint_are_copied_with_it(unfinished, tmp_path):
    path = unfinished / "checkpoints/step=00000004.ckpt"
    path.with_name(BEST).write_bytes(b"weights")
    resuming.checkpoint_to_resume(tmp_path / "other", INPUTS, resume=str(path), force=False)
    assert (tmp_path / "other/checkpoints" / BEST).read_bytes() == b"weights"
    resuming.checkpoint_to_resume(unfinished, INPUTS, resume=str(path), force=False)
    assert path.with_name(BEST).read_bytes() == b"weights"


def test_a_checkpoint_of_other_settings_is_an_input_of_what_is_made_from_it(unfinished, small_tokenizer):
    """Steps under the settings before are not made again, so the result is another than theirs alone would give."""
    path, export = unfinished / "checkpoints/step=00000004.ckpt", unfinished / "export"
    longer = INPUTS | {"trainer.max_steps": 9}
    inputs = resuming.with_origin(longer, path)
    assert inputs == longer | {RESUMED: hashlib.sha256(path.read_bytes()).hexdigest()}
    write_artifact(export, card={"stage": "sft", "inputs": longer}, tokenizer=small_tokenizer)
    with pytest.raises(
        ArtifactError,
        match=r"other inputs: checkpoint \(content\)\..*\nBefore and now: checkpoint \(content\): None → \w+",
    ):
        lineage.is_up_to_date(export, inputs, force=False)
    assert resuming.checkpoint_to_resume(unfinished, inputs, resume=str(path), force=False) == path


def test_the_run_that_a_named_checkpoint_began_is_the_same_without_the_name(unfinished, small_tokenizer):
    path, export = unfinished / "checkpoints/step=00000004.ckpt", unfinished / "export"
    longer = INPUTS | {"trainer.max_steps": 9}
    inputs = resuming.with_origin(longer, path)
    resuming.checkpoint_to_resume(unfinished, inputs, resume=str(path), force=False)  # and killed before it saves
    found = resuming.checkpoint_to_resume(unfinished, longer, resume="auto", force=False)
    assert found == path and resuming.with_origin(longer, found) == inputs
    later = path.with_name("step=00000008.ckpt")
    content = {"state_dict": {"w": torch.zeros(1)}, "global_step": 8, "inputs": inputs}
    AtomicCheckpointIO().save_checkpoint(content, later)
    assert resuming.checkpoint_to_resume(unfinished, longer, resume="auto", force=False) == later
    assert resuming.with_origin(longer, later) == inputs  # of the first one, not of this one
    write_artifact(export, card={"stage": "sft", "inputs": inputs}, tokenizer=small_tokenizer)
    assert lineage.is_up_to_date(export, longer, force=False) and lineage.is_up_to_date(
        export, dict(inputs), force=False
    )


def test_a_checkpoint_of_the_same_settings_is_not_an_input(unfinished):
    assert resuming.with_origin(INPUTS, unfinished / "checkpoints/step=00000004.ckpt") == INPUTS
    assert resuming.with_origin(INPUTS, None) == INPUTS
