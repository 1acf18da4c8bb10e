"""What an artifact was made from, and whether it must be made again."""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from components import processes
from components.exports import RESUMED, ArtifactError, content_hash, differing, read_card
from components.folders import present
from components.hub import name_of

log = logging.getLogger(__name__)


def require(reads: dict[str, str], known: dict[str, str], identity: str) -> dict[str, dict[str, str]]:
    """The artifacts that a stage reads: {name: {path, stage, content}}, and hub where one came from there.

    known: where every stage's artifact is expected, in the pipeline's order; identity: the overrides that name the
    run, such as "model=small run=x". Raises ArtifactError naming the latest stage that is missing, the command that
    makes it, and, where its own predecessors are missing too, the command that makes all of them.
    """
    order = list(known)
    stages = {path: stage for stage, path in known.items()}
    missing = [stages.get(path, name) for name, path in reads.items() if not present(path)]
    if missing:
        stage = max(missing, key=lambda s: order.index(s) if s in order else len(order))
        path = next(path for name, path in reads.items() if stages.get(path, name) == stage)
        message = f"no {stage} artifact at {path}. Make it with: python train.py stage={stage} {identity}"
        chain = [s for s in order[: order.index(stage) + 1] if not present(known[s])] if stage in order else []
        if len(chain) > 1:
            command = f"python train.py stage=all {identity} 'stages=[{','.join(chain)}]'"
            message += f"\nor, with all that it needs itself: {command}"
        message += f"\nor point at another folder with: artifacts.{stage}=<folder>"
        if stage in ("sft", "pretrain"):
            message += ", or at a model on the Hub: <owner/name>; somebody's chat model does for sft too"
        raise ArtifactError(message)
    described = {path: _described(path) for path in set(reads.values())}
    return {name: described[path] for name, path in reads.items()}


def _described(path: str) -> dict[str, str]:
    """Of a folder that somebody else made the content is hashed here, and its name on the Hub told where it has one."""
    card, name = read_card(path), name_of(path)
    content = card.get("content") or content_hash(path)
    return {"path": str(path), "stage": card.get("stage", "?"), "content": content} | ({"hub": name} if name else {})


def same_tokenizer(fingerprints: dict[str, str]) -> None:
    """Raises ArtifactError unless all artifacts were made with one tokenizer; fingerprints by artifact path."""
    if len(set(fingerprints.values())) > 1:
        listed = "\n".join(f"  {path}: {fingerprint[:16]}" for path, fingerprint in fingerprints.items())
        raise ArtifactError(
            "the artifacts were made with different tokenizers. Make the later stages again from the same one, with "
            f"force=true. Fingerprints:\n{listed}"
        )


def is_made(export: str | Path, inputs: dict[str, Any], force: bool | str, beside: str = "run=<name>") -> bool:
    """Whether the artifact is there and was made from just these inputs.

    beside: the command that makes it in another run, for the message.
    force True: made again whatever is there; "changed": made again if its inputs differ.
    What a killed run left half-written beside it is removed.
    Raises ArtifactError if it is there, differs, and force is False: a finished stage is not overwritten in silence.
    """
    there = present(export)
    if processes.rank() == 0:
        _remove_leftovers(Path(export))
    if not there or force is True:
        return False
    before = read_card(export).get("inputs", {})
    changed = differing(before, inputs)
    if not changed:
        return True
    shown = "; ".join(f"{k}: {_short(before.get(k))} → {_short(inputs.get(k))}" for k in changed[:4])
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    if force == "changed":
        log.info(f"{export} is made again, its inputs changed: {shown}{more}")
        return False
    raise ArtifactError(
        f"{export} is finished, but was made from other inputs: {', '.join(changed[:4])}{more}. "
        f"Add force=true to replace it. To keep both: {beside}\nBefore and now: {shown}{more}"
    )


def with_origin(inputs: dict[str, Any], checkpoint: str | Path | None) -> dict[str, Any]:
    """The inputs of a run that begins with a checkpoint. Where that was made with other settings, steps under those are
    part of the result, so its content is an input; a checkpoint of the same ones has what its own run began from.

    Raises CheckpointError if the file is damaged.
    """
    if checkpoint is None or not Path(checkpoint).is_file():
        return inputs
    from components import resuming  # and torch, for a checkpoint that somebody names

    before = resuming.inputs_in(Path(checkpoint))
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
    from components import resuming  # torch comes with these three, for a stage that is trained
    from components.callbacks.checkpoints import BEST, latest
    from components.loggers.recorder import forget

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
    before = resuming.read_note(note) if there else None
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
    from components import resuming

    path = Path(resume)
    if not path.is_file():
        raise ArtifactError(f"resume={resume}: no such file; expected auto, never or a .ckpt file")
    before = resuming.inputs_in(path)
    if before is None:
        told = ["it does not tell what it was made from, so nobody can check that this run continues it"]
    else:
        told = resuming.checked(path, before, inputs)
    if processes.rank() == 0:
        log.info(f"resuming from {path}")
        for line in told:
            log.warning(f"resume={resume}: {line}")
    return path


def _refuse_other_settings(folder: Path, last: Path | None, before: dict[str, Any], inputs: dict[str, Any]) -> None:
    from components import resuming

    allowed, refused = resuming.differences(before, inputs, resuming.step_of(last) if last else 0)
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


def _remove_leftovers(export: Path) -> None:
    """What killed runs left of writing an artifact: halves under temporary names, one that the present one replaced."""
    halves = [*export.parent.glob(f"{export.name}.writing-*")]
    replaced = [export.with_name(f"{export.name}.previous")] if export.exists() else []
    for leftover in [*halves, *replaced]:
        shutil.rmtree(leftover, ignore_errors=True)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("torch", "lightning", "hydra-core", "datasets", "sentencepiece", "torchmetrics")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def commit() -> str:
    """The project's commit, with '+' when files differ from it; '' outside a repository."""
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name.strip() + ("+" if changed.strip() else "")


def hardware() -> str:
    """The processor and, where there is one, the accelerator."""
    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = found[0].split(":", 1)[1].strip() if found else name
    parts = [f"{torch.get_num_threads()} threads of {name}"]
    if torch.cuda.is_available():
        parts.insert(0, f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}")
    return ", ".join(parts)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"
