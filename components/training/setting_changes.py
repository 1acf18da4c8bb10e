"""Which settings may differ between a checkpoint and the run that resumes from it."""

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from components.artifacts.metadata import RESUMED as RESUMED
from components.artifacts.metadata import differing
from components.training.checkpoint_io import check
from components.training.schedules import schedule

# what validations are compared by; None where nothing went by them, or goes by them now
GOES_BY = ("selection.*", "callbacks.checkpoints.m*")
TAKES_EFFECT = {  # by the beginning of "name: before → now", as a pattern
    "trainer.max_steps": "training ends there",
    "trainer.max_epochs": "training ends there, and a rate that decays does so until then",
    "small_data.steps": "training ends there, and a rate that decays does so until then",
    "small_data.patience": "from here on",
    "trainer.gradient_clip_val": "from here on",
    "trainer.precision": "from here on",
    "trainer.accelerator": "from here on",
    "trainer.devices": "from here on; within a rollout as many processes are needed as made it",
    "trainer.num_nodes": "from here on; within a rollout as many processes are needed as made it",
    "determinism": "from here on",
    "trainer.deterministic": "from here on",
    "trainer.val_check_interval": "from here on",
    "trainer.check_val_every_n_epoch": "from here on",
    "trainer.limit_val_batches": "from here on; what was validated before is compared with it",
    "callbacks.early_stopping": "from here on",
    "export: best → last": "at the end",
    "callbacks.checkpoints.export: best → last": "at the end",
    **{f"{name}: {change}": "from here on" for name in GOES_BY for change in ("None → ", "* → None")},
}
REFUSED = {  # why, by the beginning of a setting's name; "" is the rest
    "stage._target_": "this is a checkpoint of another stage, which starts from an artifact, not from a checkpoint",
    "stage.optimizer.": "the optimizer and its rate are restored from the checkpoint",
    "stage.schedule.": "the schedule of the rate would break off at this step",
    "data (content)": "other data: the position in the checkpoint's data means nothing in it",
    "data.": "the position in the checkpoint's data means nothing in other batches or records",
    "reads.": "another artifact than the one that was trained from",
    "model.": "another model",
    "lora": "other weights are trained",
    "export": "validations so far kept no weights",
    "callbacks.checkpoints.export": "validations so far kept no weights",
    "seed": "order of data and samples would change in the middle",
    "": "cannot change in the middle of a run",
}


class ResumeError(ValueError):
    """A checkpoint belongs to a run with other settings."""


def inputs_in(path: Path) -> dict[str, Any] | None:
    """The inputs of the run that wrote a checkpoint, from the file or the note beside it; None where neither tells.

    Raises CheckpointError if the file is damaged.
    """
    check(path)
    inputs = torch.load(path, weights_only=True, mmap=True, map_location="cpu").get("inputs")
    return inputs or read_note(path.with_name("inputs.json"))


def read_note(note: Path) -> dict[str, Any] | None:
    """The inputs that a note tells, None where it is lost or damaged."""
    try:
        inputs = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return inputs if isinstance(inputs, dict) else None


def differences(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> tuple[list[str], list[str]]:
    """(those that take effect, those that are refused) of the settings that differ from a checkpoint's after `step`
    optimizer steps, each as a line that says what it means."""
    allowed, refused = [], []
    names, stage = differing(before, {**now, RESUMED: before.get(RESUMED)}), "stage._target_"
    for name in [stage] if stage in names else names:  # all others differ with the stage
        whole = f"{name}: {before.get(name)} → {now.get(name)}"
        change = f"{name}: {_short(before.get(name))} → {_short(now.get(name))}"
        effect = next((text for pattern, text in TAKES_EFFECT.items() if fnmatchcase(whole, f"{pattern}*")), None)
        if effect is None:
            reason = next(text for prefix, text in REFUSED.items() if name.startswith(prefix))
            refused.append(f"{change} (refused: {reason})")
        else:
            leap = _leap(before, now, step) if name == "trainer.max_steps" else ""
            allowed.append(f"{change} (takes effect: {effect}{leap})")
    return allowed, refused


def checked(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ from those of the checkpoint at `path` and take effect, a line for each.

    Raises ResumeError, naming all that differ, where one of them cannot.
    """
    allowed, refused = differences(before, now, step_of(path))
    if refused:
        listed = "".join(f"\n  {line}" for line in [*refused, *allowed])
        raise ResumeError(
            f"{path} was written by a run with other settings than this one:{listed}\n"
            "Set them as they were to resume it. To train with other settings from what it has learned, finish that "
            "run and give its export as an artifact (artifacts.<stage>=<folder>), with run=<name> for the new one"
        )
    return allowed


def step_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True, mmap=True, map_location="cpu").get("global_step", 0))


def _leap(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> str:
    """How the learning rate changes at `step` where its schedule ends elsewhere; "" where it stays or is not known."""
    kind, ends = now.get("stage.schedule.kind"), [of.get("trainer.max_steps", -1) for of in (before, now)]
    if kind in (None, "constant") or min(ends) <= 0:
        return ""
    settings = {name: now[f"stage.schedule.{name}"] for name in ("warmup_steps", "final_fraction")}
    peak = now["stage.optimizer.lr"]
    old, new = (peak * schedule(kind, step, total_steps=end, **settings) for end in ends)
    return (
        f"; the {kind} schedule is stretched to it, so that the learning rate goes from {old:.3g} to {new:.3g} at once"
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:28]}…"
