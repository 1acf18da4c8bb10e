"""Which settings can differ between a checkpoint and the run that resumes from it."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from components.artifacts.metadata import RESUMED as RESUMED
from components.artifacts.metadata import differing
from components.artifacts.renamed import as_named_now
from components.system.disk import read_json
from components.training.checkpoint_io import check
from components.training.schedules import first_of_decay, schedule

# the settings by which validations are compared; None where they are not compared
COMPARED_BY = ("selection.*", "callbacks.checkpoints.m*")
TAKES_EFFECT = {  # the effect, by a pattern for the beginning of "name: before → now"
    "trainer.max_steps": "training ends there",
    "trainer.max_epochs": "training ends there, and a decaying learning rate decays until there",
    "small_data.steps": "training ends there, and a decaying learning rate decays until there",
    "small_data.patience": "from here on",
    "trainer.gradient_clip_val": "from here on",
    "trainer.precision": "from here on",
    "trainer.accelerator": "from here on",
    "trainer.devices": "from here on; in the middle of a rollout, the number of processes must be the same",
    "trainer.num_nodes": "from here on; in the middle of a rollout, the number of processes must be the same",
    "data.batch_size": "from here on; times the number of processes, it must be the same",
    "data.prompts_per_rollout": "from here on; times the number of processes, it must be the same",
    "determinism": "from here on",
    "trainer.deterministic": "from here on",
    "trainer.val_check_interval": "from here on",
    "trainer.check_val_every_n_epoch": "from here on",
    "trainer.limit_val_batches": "from here on; later validations are compared with earlier ones all the same",
    "callbacks.early_stopping": "from here on",
    "export: best → last": "at the end",
    "callbacks.checkpoints.export: best → last": "at the end",
    **{
        f"stage.reward.{name}": "on responses that are sampled from here on"
        for name in ("path", "functions", "timeout", "processes", "on_timeout")
    },
    **{f"{name}: {change}": "from here on" for name in COMPARED_BY for change in ("None → ", "* → None")},
}
SCHEDULE = ("warmup_steps", "final_fraction", "decay_share", "decay_shape")  # besides its kind
REFUSED = {  # the reason, by the beginning of a setting's name; "" for all others
    "stage._target_": "this is a checkpoint of another stage; a stage starts from an artifact, not a checkpoint",
    "stage.optimizer.": "the optimizer and its learning rate are restored from the checkpoint",
    "stage.learning_rates": "the optimizer and its learning rates are restored from the checkpoint",
    "stage.freeze": "different weights are trained",
    "ema_decay": "the average so far has another decay, or there is none",
    "stage.schedule.": "the learning-rate schedule would be discontinuous at this step",
    "data (content)": "other data: the checkpoint's position in its data has no meaning there",
    "data.": "the checkpoint's position in its data has no meaning in other batches or records",
    "reads.": "a different artifact than the one that training started from",
    "model.": "a different model",
    "lora": "different weights are trained",
    "export": "validations so far kept no weights",
    "callbacks.checkpoints.export": "validations so far kept no weights",
    "seed": "the order of data and samples would change in the middle",
    "": "cannot change in the middle of a run",
}


class ResumeError(ValueError):
    """A checkpoint is from a run with other settings."""


def inputs_in(path: Path) -> dict[str, Any] | None:
    """The inputs of the run that wrote a checkpoint, from the file or from inputs.json next to it; None if neither has
    them.

    Raises CheckpointError if the file is damaged.
    """
    check(path)
    inputs = torch.load(path, weights_only=True, mmap=True, map_location="cpu").get("inputs")
    return as_named_now(inputs) if inputs else read_note(path.with_name("inputs.json"))


def read_note(note: Path) -> dict[str, Any] | None:
    """The inputs in a note (inputs.json); None if it is lost or damaged."""
    try:
        return as_named_now(read_json(note))
    except ValueError:
        return None


def differences(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> tuple[list[str], list[str]]:
    """(changes that take effect, changes that are refused) between the settings of a checkpoint after `step` optimizer
    steps and the current ones, each as a line with its effect or reason."""
    allowed, refused = [], []
    names, stage = differing(before, {**now, RESUMED: before.get(RESUMED)}), "stage._target_"
    for name in [stage] if stage in names else names:  # with another stage, all other settings differ too
        change = f"{name}: {before.get(name)} → {now.get(name)}"
        shown = f"{name}: {_short(before.get(name))} → {_short(now.get(name))}"
        effect = next((text for pattern, text in TAKES_EFFECT.items() if fnmatchcase(change, f"{pattern}*")), None)
        if name.startswith("stage.schedule.") and _is_stable(before, now, step):
            effect = "from here on; the learning rate at this step is the same"
        if effect is None:
            reason = next(text for prefix, text in REFUSED.items() if name.startswith(prefix))
            refused.append(f"{shown} (refused: {reason})")
        else:
            jump = _rate_jump(before, now, step) if name == "trainer.max_steps" else ""
            allowed.append(f"{shown} (takes effect: {effect}{jump})")
    return allowed, refused


def checked(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ from those of the checkpoint at `path` and take effect, a line for each.

    Raises ResumeError, naming all differences, if one of them is refused.
    """
    allowed, refused = differences(before, now, step_of(path))
    if refused:
        listed = "".join(f"\n  {line}" for line in [*refused, *allowed])
        raise ResumeError(
            f"{path} was written by a run with other settings:{listed}\n"
            "To resume from it, restore the refused settings. To continue from its weights with other settings, finish "
            "that run and set its export as an artifact (artifacts.<stage>=<folder>), with run=<name> for the new run"
        )
    return allowed


def step_of(path: Path) -> int:
    """The optimizer step of a checkpoint, by its content."""
    return int(torch.load(path, weights_only=True, mmap=True, map_location="cpu").get("global_step", 0))


def _rate_jump(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> str:
    """How a new end of the schedule changes the learning rate at `step`; "" if it does not, or the end is unknown."""
    old, new = _rate(before, step), _rate(now, step)
    kind, decay = now.get("stage.schedule.kind"), _decay(now)
    if old is None or new is None or kind == "constant":
        return ""
    if old == new:
        return f"; the stable phase continues, and the learning rate decays from step {decay}" if decay else ""
    jump = f"so the learning rate jumps from {old:.3g} to {new:.3g} now"
    if kind == "wsd":
        return f"; its decay began at step {_decay(before)}, {jump}; a checkpoint up to that step continues without it"
    return f"; the {kind} schedule stretches to that step, {jump}"


def _rate(inputs: Mapping[str, Any], step: int) -> float | None:
    """The learning rate that a run's settings give a step; None if they do not say when it ends, or the schedule is
    not ours."""
    kind, end = inputs.get("stage.schedule.kind"), inputs.get("trainer.max_steps", -1)
    if kind is None or inputs.get("stage.schedule._target_", "schedule").rpartition(".")[2] != "schedule":
        return None
    if kind != "constant" and end <= 0:
        return None
    given = {name: inputs.get(f"stage.schedule.{name}") for name in SCHEDULE}
    settings: dict[str, Any] = {"final_fraction": 1.0, **{n: value for n, value in given.items() if value is not None}}
    return inputs["stage.optimizer.lr"] * schedule(kind, step, total_steps=end, **settings)


def _decay(inputs: Mapping[str, Any]) -> int | None:
    """The first step of a wsd schedule's decay; None for any other, or without one."""
    end, share = inputs.get("trainer.max_steps", -1), inputs.get("stage.schedule.decay_share")
    if inputs.get("stage.schedule.kind") != "wsd" or not share or end <= 0:
        return None
    return first_of_decay(inputs["stage.schedule.warmup_steps"], end, share)


def _is_stable(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> bool:
    """Whether both schedules are wsd and give this step one rate: the stable phase has no memory of its settings."""
    both = all(inputs.get("stage.schedule.kind") == "wsd" for inputs in (before, now))
    return both and _rate(before, step) is not None and _rate(before, step) == _rate(now, step)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:28]}…"
