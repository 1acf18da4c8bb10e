"""Which checkpoint a run resumes from, and what that makes of its inputs."""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from components.artifacts.metadata import RESUMED, ArtifactError, differing
from components.system import processes

log = logging.getLogger(__name__)


def with_origin(inputs: dict[str, Any], checkpoint: str | Path | None) -> dict[str, Any]:
    """The inputs of a run that begins with a checkpoint. Where that was made with other settings, steps under those are
    part of the result, so its content is an input; a checkpoint of the same ones has what its own run began from.

    Raises CheckpointError if the file is damaged.
    """
    if checkpoint is None or not Path(checkpoint).is_file():
        return inputs
    from components.training import setting_changes  # and torch, for a checkpoint that somebody names

    before = setting_changes.inputs_in(Path(checkpoint))
    own = {name: value for name, value in inputs.items() if name != RESUMED}
    if before is not None and not differing(before, own):
        return {**own, **({RESUMED: before[RESUMED]} if RESUMED in before else {})}
    with open(checkpoint, "rb") as stream:
        return {**own, RESUMED: hashlib.file_digest(stream, "sha256").hexdigest()}


def checkpoint_to_resume(stage: str | Path, inputs: dict[str, Any], *, resume: str, force: bool | str) -> Path | None:
    """The checkpoint to resume from: the one that `resume` names, else the stage's last; None to start from scratch.

    A note beside the checkpoints tells what they are made from. Starting from scratch deletes what an earlier run left:
    with resume="never" or force True always, with force "changed" where the inputs differ.
    Raises ArtifactError where they differ, or nobody can tell, and nobody said what to do; ResumeError where `resume`
    names a checkpoint of a run whose settings differ in what cannot change.
    """
    from components.loggers.recorder import forget
    from components.training import setting_changes  # torch comes with these three, for a stage that is trained
    from components.training.checkpoint_io import BEST, latest

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
            write_json(note, inputs)
        return path
    there = any(folder.glob("*.ckpt"))
    before = setting_changes.read_note(note) if there else None
    changed = differing(before, inputs) if before else []
    anew = not there or resume == "never" or force is True or (changed and force == "changed")
    found = None if anew else latest(folder)
    if before and changed and not anew:
        _refuse_other_settings(folder, found, before, inputs)
    # the first process tidies up; where all began at once it may be doing so now
    if processes.rank():
        return found
    if not anew and before is None:
        raise ArtifactError(
            f"{folder} holds checkpoints, but {note.name}, which tells what they were made from, is lost or damaged. "
            "resume=<file.ckpt> resumes from one of them; resume=never starts from scratch and deletes them"
        )
    if anew:
        _drop(folder)
        forget(Path(stage))
        folder.mkdir(parents=True, exist_ok=True)
        write_json(note, inputs)
    if found:
        log.info(f"resuming from {found}")
    return found


def _named_checkpoint(resume: str, inputs: dict[str, Any]) -> Path:
    """The file, after what differs from its settings was told."""
    from components.training import setting_changes

    path = Path(resume)
    if not path.is_file():
        raise ArtifactError(f"resume={resume}: no such file; expected auto, never or a .ckpt file")
    before = setting_changes.inputs_in(path)
    if before is None:
        told = ["it does not tell what it was made from, so nobody can check that this run continues it"]
    else:
        told = setting_changes.checked(path, before, inputs)
    if processes.rank() == 0:
        log.info(f"resuming from {path}")
        for line in told:
            log.warning(f"resume={resume}: {line}")
    return path


def _refuse_other_settings(folder: Path, last: Path | None, before: dict[str, Any], inputs: dict[str, Any]) -> None:
    from components.training import setting_changes

    allowed, refused = setting_changes.differences(before, inputs, setting_changes.step_of(last) if last else 0)
    regardless = f"; resume={last} resumes with them" if last and not refused else ""
    raise ArtifactError(
        f"{folder} holds checkpoints of an unfinished run with other settings:"
        + "".join(f"\n  {line}" for line in [*refused, *allowed])
        + f"\nresume=never starts from scratch and deletes them; run=<name> keeps both{regardless}"
    )


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Written under another name, synced and renamed, so that a kill leaves the earlier one."""
    staging = file.with_name(file.name + ".tmp")
    with staging.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, default=str)
        stream.flush()
        os.fsync(stream.fileno())
    staging.replace(file)


def _drop(folder: Path) -> None:
    """Deletes a folder whole: a kill on the way leaves it under another name, where nobody takes it for a folder."""
    for dropped in folder.parent.glob(f"{folder.name}.dropped-*"):
        shutil.rmtree(dropped)
    if folder.exists():
        aside = folder.with_name(f"{folder.name}.dropped-{os.getpid()}")
        folder.rename(aside)
        shutil.rmtree(aside)
