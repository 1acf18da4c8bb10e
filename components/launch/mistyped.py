"""Suggests what was probably meant by words that are not overrides and by keys and choices that do not exist.

Imports nothing heavy, since train.py calls it before anything else.
"""

import difflib
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hydra._internal.utils import get_args_parser  # holds for Hydra 1.3

from components.artifacts.renamed import RENAMED

CONF = Path(__file__).resolve().parents[2] / "conf"
ALIASES = {  # names that other programs use
    "learning_rate": "stage.optimizer.lr",
    "warmup": "stage.schedule.warmup_steps",
    "steps": "trainer.max_steps",
    "num_steps": "trainer.max_steps",
    "iterations": "trainer.max_steps",
    "max_iters": "trainer.max_steps",
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "num_train_epochs": "trainer.max_epochs",
    "grad_clip": "trainer.gradient_clip_val",
    "max_grad_norm": "trainer.gradient_clip_val",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "device": "trainer.accelerator",
    "gpus": "trainer.devices",
    "batch": "data.batch_size",
    "train_batch_size": "data.batch_size",
    "per_device_train_batch_size": "data.batch_size",
    "dataset": "data.path",
    "train_file": "data.path",
    "max_length": "context",
    "max_seq_length": "context",
    "context_length": "context",
    "output_dir": "paths.logs",
    "out": "paths.logs",
    "name": "run",
    "run_name": "run",
    "checkpoint": "resume",
}

Find = Callable[[str, list[str]], str]  # (unknown key, the other overrides) → the closest key, "" if there is none


class Word(NamedTuple):
    """An argument as typed, whether Hydra accepts it, and the key and value that it appears to set."""

    typed: str
    fits: bool
    key: str = ""
    value: str | None = None


def answer(arguments: Sequence[str], find: Find) -> str | None:
    """The message for unknown flags, words without `=` and unknown choices of a group, with the whole command that was
    probably meant; None if there are none of these."""
    words = list(_words(arguments))
    if all(word.fits for word in words):
        return None
    good = [word.typed for word in words if word.fits and not word.typed.startswith("-")]
    meant = {word.typed: _meant(word, good, find) for word in words if not word.fits}
    lines = [f"{typed}: {_reason(typed)}" for typed in meant]
    if all(meant.values()):
        command = [meant.get(word.typed) or word.typed for word in words]
        return "\n".join([*lines, f"Did you mean: {shlex.join(['python', 'train.py', *command])}"])
    hints = [f"Did you mean {shlex.quote(text)}?" for text in meant.values() if text]
    return "\n".join([*lines, *hints, "python train.py --help lists the stages and the groups"])


def respelled(unknown: str, arguments: Sequence[str], find: Find) -> str:
    """The message for an override whose key the config does not have; "" if there is nothing to suggest.

    unknown: the key, or its first part up to the name that the config does not have.
    """
    wrong = next((a for a in arguments if _key(a) == unknown or _key(a).startswith(f"{unknown}.")), "")
    if not wrong:
        return find(unknown, list(arguments))
    others = [a for a in arguments if a != wrong]
    meant = RENAMED.get(unknown) or ALIASES.get(unknown) or find(unknown, others)
    if " " in meant or not meant:
        return meant
    _, _, value = wrong.partition("=")
    command = [f"{meant}={value}" if a == wrong else a for a in arguments]
    return f"Did you mean {meant}?\n{shlex.join(['python', 'train.py', *command])}"


def choices(group: str) -> list[str]:
    """The choices of a config group; empty if there is no such group."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def overview() -> str:
    """The stages, one line each, and how to choose one."""
    width = max(map(len, choices("stage")))
    lines = [f"  stage={name:<{width}}  {_summary(CONF / f'stage/{name}.yaml')}" for name in choices("stage")]
    return "\n".join(
        [
            "Gradus trains a GPT assistant step by step.\n",
            "  python train.py stage=rm model=small        one stage, and what it needs first",
            "  python train.py stage=all                   every stage, in order",
            "  python train.py stage=sft trainer.max_steps=50 stage.optimizer.lr=1e-4",
            "  python train.py -m stage=rm seed=1,2,3      a sweep\n",
            *lines,
            "\npython train.py --help lists all groups, python train.py stage=rm --cfg job every setting of one stage.",
        ]
    )


def _summary(file: Path) -> str:
    """The first sentence of a config's first comment."""
    comments = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    first = next((line for line in comments if "@package" not in line), "# ")
    return re.split(r"\.(?:\s|$)", first[2:])[0]


def _key(argument: str) -> str:
    return argument.lstrip("+~").partition("=")[0]


def _words(arguments: Sequence[str]) -> Iterator[Word]:
    # holds for Python 3.11 to 3.13
    flags = {text: action for action in get_args_parser()._actions for text in action.option_strings}
    searched = any(argument.startswith(("--config-dir", "-cd", "hydra.searchpath")) for argument in arguments)
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        flag = argument.partition("=")[0]
        if argument in flags and flags[argument].nargs != 0 and rest and "=" not in rest[0]:
            yield from (Word(argument, True), Word(rest.pop(0), True))
        elif argument.startswith("-") and not any(name.startswith(flag) for name in flags):
            value = argument.partition("=")[2] if "=" in argument else None
            typed = argument
            if value is None and rest and "=" not in rest[0] and not rest[0].startswith("--"):
                value = rest.pop(0)
                typed = f"{argument} {value}"
            yield Word(typed, False, flag.lstrip("-").replace("-", "_"), value)
        elif argument.startswith(("-", "~")):
            yield Word(argument, True)
        elif "=" not in argument:
            yield Word(argument, False)
        else:
            key, _, value = argument.partition("=")
            yield Word(argument, searched or not _unknown_choices(key, value), key, value)


def _unknown_choices(group: str, value: str) -> list[str]:
    """The names of a choice, several in a sweep, that the group does not have."""
    if not re.fullmatch(r"[a-z]\w*", group) or not (CONF / group).is_dir():
        return []
    names = [name for name in value.split(",") if re.fullmatch(r"[\w-]+", name) and name != "null"]
    return [name for name in names if name not in choices(group)]


def _meant(word: Word, others: list[str], find: Find) -> str:
    """The override that a word probably stands for, "" if nothing is close."""
    if not word.key:
        return _bare(word.typed)
    if re.fullmatch(r"\w+", word.key) and (CONF / word.key).is_dir():
        near = {name: _near(name, choices(word.key)) for name in _unknown_choices(word.key, word.value or "")}
        names = [near.get(name, name) for name in (word.value or "").split(",")]
        return f"{word.key}={','.join(names)}" if all(names) else ""
    key = ALIASES.get(word.key) or find(word.key, others)
    return "" if not key or " " in key else f"{key}={'true' if word.value is None else word.value}"


def _bare(word: str) -> str:
    groups = [
        "stage",
        "model",
        "experiment",
        *sorted(f.name for f in CONF.iterdir() if f.is_dir() and f.name != "hydra"),
    ]
    exact = next((f"{group}={word}" for group in groups if word in choices(group)), "")
    stage = _near(word, choices("stage"))
    return exact or (f"stage={stage}" if stage else "")


def _near(name: str, names: list[str]) -> str:
    return next(iter(difflib.get_close_matches(name, names, n=1)), "")


def _reason(typed: str) -> str:
    group, _, value = typed.partition("=")
    if typed.startswith("-"):
        return "train.py has no such flag; settings are written key=value"
    if not value:
        return "expected key=value"
    return f"{group} has no {', '.join(_unknown_choices(group, value))}; it has {', '.join(choices(group))}"
