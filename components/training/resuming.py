"""Which checkpoint a run resumes from, and how that changes its inputs."""

import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from components.artifacts.metadata import RESUMED, ArtifactError, differing
from components.system import processes
from components.system.disk import write_json

log = logging.getLogger(__name__)


def with_origin(inputs: dict[str, Any], checkpoint: str | Path | None) -> dict[str, Any]:
    """The inputs of a run that resumes from `checkpoint`. If the checkpoint was written with other settings, the result
    depends on steps under those, so its content becomes an input; if with the same, its own run's origin is kept.

    Raises CheckpointError if the file is damaged.
    """
    if checkpoint is None or not Path(checkpoint).is_file():
        return inputs
    from components.training import setting_changes  # imports torch, which only a named checkpoint needs

    before = setting_changes.inputs_in(Path(checkpoint))
    own = {name: value for name, value in inputs.items() if name != RESUMED}
    if before is not None and not differing(before, own):
        return {**own, **({RESUMED: before[RESUMED]} if RESUMED in before else {})}
    with open(checkpoint, "rb") as stream:
        return {**own, RESUMED: hashlib.file_digest(stream, "sha256").hexdigest()}


def checkpoint_to_resume(stage: str | Path, inputs: dict[str, Any], *, resume: str, force: bool | str) -> Path | None:
    """The checkpoint to resume from: the one that `resume` names, else the stage's latest; None to start from scratch.

    inputs.json next to the checkpoints records their run's inputs. Starting from scratch deletes an earlier run's
    checkpoints and metrics: always with resume="never" or force True; with force "changed" if the inputs differ.
    Raises ArtifactError if the inputs differ or are unknown and neither argument decides; ResumeError if `resume` names
    a checkpoint of a run that differs in settings that cannot change.
    """
    from components.loggers.recorder import forget
    from components.training import setting_changes  # these three import torch, which only a trained stage needs
    from components.training.checkpoint_io import BEST, latest, newest_first

    folder = Path(stage) / "checkpoints"
    note = folder / "inputs.json"
    if resume not in ("auto", "never"):
        path = _named_checkpoint(resume, inputs)
        if processes.rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            best = path.with_name(BEST)
            if best.is_file() and path.parent.resolve() != folder.resolve():
                staging = folder / f"{BEST}.tmp"
                shutil.copyfile(best, staging)
                staging.replace(folder / BEST)
            write_json(note, inputs, lenient=True)
        return path
    exists = bool(newest_first(folder))
    before = setting_changes.read_note(note) if exists else None
    changed = differing(before, inputs) if before else []
    from_scratch = not exists or resume == "never" or force is True or (changed and force == "changed")
    checkpoint = None if from_scratch else latest(folder)
    if before and changed and not from_scratch:
        _refuse_other_settings(folder, checkpoint, before, inputs)
    # the first process cleans up; if all processes started at once, it can be doing so now
    if processes.rank():
        return checkpoint
    if not from_scratch and before is None:
        raise ArtifactError(
            f"{folder} contains checkpoints, but {note.name}, which records their settings, is lost or damaged. "
            "resume=<file.ckpt> resumes from one of them; resume=never starts from scratch and deletes them"
        )
    if from_scratch:
        _drop(folder)
        forget(Path(stage))
        folder.mkdir(parents=True, exist_ok=True)
        write_json(note, inputs, lenient=True)
    if checkpoint:
        log.info(f"resuming from {checkpoint}")
    return checkpoint


def _named_checkpoint(resume: str, inputs: dict[str, Any]) -> Path:
    """The file that `resume` names; warns of settings that differ from its own."""
    from components.training import setting_changes

    path = Path(resume)
    if not path.is_file():
        raise ArtifactError(f"resume={resume}: no such file; expected auto, never or a .ckpt file")
    before = setting_changes.inputs_in(path)
    if before is None:
        warnings = ["it does not record its settings, so they cannot be compared with this run's"]
    else:
        warnings = setting_changes.checked(path, before, inputs)
    if processes.rank() == 0:
        log.info(f"resuming from {path}")
        for line in warnings:
            log.warning(f"resume={resume}: {line}")
    return path


def _refuse_other_settings(folder: Path, last: Path | None, before: dict[str, Any], inputs: dict[str, Any]) -> None:
    from components.training import setting_changes

    allowed, refused = setting_changes.differences(before, inputs, setting_changes.step_of(last) if last else 0)
    or_resume = f"; resume={last} resumes with the new settings" if last and not refused else ""
    raise ArtifactError(
        f"{folder} contains checkpoints of an unfinished run with other settings:"
        + "".join(f"\n  {line}" for line in [*refused, *allowed])
        + f"\nresume=never starts from scratch and deletes them; run=<name> keeps both{or_resume}"
    )


def _drop(folder: Path) -> None:
    """Deletes a folder by renaming it first: a kill midway never leaves half a folder under its own name."""
    for dropped in folder.parent.glob(f"{folder.name}.dropped-*"):
        shutil.rmtree(dropped)
    if folder.exists():
        renamed = folder.with_name(f"{folder.name}.dropped-{os.getpid()}")
        folder.rename(renamed)
        shutil.rmtree(renamed)
