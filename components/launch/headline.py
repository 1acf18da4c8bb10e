"""The first line of a run, `stage … of run …, in …`, from the command line and a few files of conf/ alone.

Hydra knows it half a second later, after its import and the composition of the whole config. If this module is not
certain, it prints nothing; `show_once` then prints the line if Hydra's result differs.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from components.system import processes

CONF = Path(__file__).resolve().parents[2] / "conf"
NAMED = ("stage", "model", "run", "experiment", "debug", "paths.logs", "paths.folder")  # what the line depends on
READ = ("stage", "experiment", "debug")  # groups whose files can name the run and its folder
LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader  # libyaml is ten times as fast
CHOICE = "${{hydra:runtime.choices.{}}}"
_printed = ""


class Uncertain(Exception):
    """The line depends on more than is read here."""


def predicted(arguments: Sequence[str]) -> str | None:
    """The line for the overrides of a single run; None if it depends on more than is read here."""
    try:
        return _line(dict(map(_plain, arguments)))
    except Uncertain:
        return None


def _line(given: dict[str, str]) -> str:
    presets = [_read(group, given[group]) for group in ("experiment", "debug") if group in given]
    if any(_others(preset) for preset in presets):
        raise Uncertain
    chosen = {key: value for preset in presets for key, value in _overridden(preset).items()} | given
    if "stage" not in chosen:
        raise Uncertain
    stage = _read("stage", chosen["stage"])
    choices = {"stage": chosen["stage"]}
    choices["model"] = chosen.get("model") or _overridden(stage).get("model") or _default_model()
    own = {"run": CHOICE.format("model"), "paths.logs": "logs", "paths.folder": chosen["stage"]}
    for file in (stage, *presets):
        own |= {"run": file["run"]} if "run" in file else {}
        own |= {f"paths.{key}": value for key, value in (file.get("paths") or {}).items()}
    own |= given
    run, logs, folder = (_filled_in(str(own[key]), choices) for key in ("run", "paths.logs", "paths.folder"))
    return line_of(chosen["stage"], run, f"{logs}/{run}/{folder}")


def line_of(stage: str, run: str, folder: str) -> str:
    """The first line of a run."""
    return f"stage {stage} of run {run}, in {os.path.normpath(folder)}"


def show(arguments: Sequence[str]) -> None:
    """Prints the line for the arguments, if it is certain; of several processes, only the first does."""
    line = None if processes.rank() else predicted(arguments)
    if line is not None:
        show_once(line)


def show_once(line: str) -> None:
    """Prints the line unless this process has printed it already."""
    global _printed
    if line != _printed:
        print(line, flush=True)
    _printed = line


def _plain(argument: str) -> tuple[str, str]:
    """The key and value of an argument that sets a key or chooses a file of conf/. Raises Uncertain for one that can
    change the run's name or folder in any other way."""
    key, equals, value = argument.partition("=")
    if not equals or not re.fullmatch(r"[a-z]\w*(\.\w+)*", key) or key in ("paths", "hydra"):
        raise Uncertain
    if key.startswith(("paths.", "hydra.")) and key not in NAMED:
        raise Uncertain
    if key in NAMED and (not re.fullmatch(r"[\w./-]+", value) or value == "null"):
        raise Uncertain
    if (CONF / key).is_dir() and not _chooses(CONF / key / f"{value}.yaml", key in READ):
        raise Uncertain
    return key, value


def _chooses(file: Path, read: bool) -> bool:
    """Whether the file exists and sets nothing about the run's name or folder that is not read here."""
    return file.is_file() and (read or not re.search("^(hydra|run|paths):", file.read_text(encoding="utf-8"), re.M))


def _read(group: str, name: str) -> dict[str, Any]:
    """A file of conf/. Raises Uncertain if it configures Hydra itself, or is not valid YAML, which Hydra reports."""
    try:
        read = yaml.load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"), LOADER)
    except yaml.YAMLError:
        raise Uncertain from None
    if not isinstance(read, dict) or "hydra" in read:
        raise Uncertain
    return read


def _overridden(file: dict[str, Any]) -> dict[str, str]:
    """The choices that a file makes for other groups."""
    entries = [entry for entry in file.get("defaults") or [] if isinstance(entry, dict)]
    return {key.removeprefix("override /"): value for entry in entries for key, value in entry.items()}


def _others(file: dict[str, Any]) -> list[Any]:
    """The entries of a file's defaults that include other files."""
    entries = [entry for entry in file.get("defaults") or [] if entry != "_self_"]
    return [entry for entry in entries if isinstance(entry, str) or not next(iter(entry)).startswith("override /")]


def _filled_in(text: str, choices: dict[str, str]) -> str:
    for group, choice in choices.items():
        text = text.replace(CHOICE.format(group), choice)
    if "${" in text:
        raise Uncertain
    return text


def _default_model() -> str:
    defaults = yaml.load((CONF / "train.yaml").read_text(encoding="utf-8"), LOADER)["defaults"]
    return next(entry["model"] for entry in defaults if "model" in entry)
