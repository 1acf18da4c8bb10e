"""Which files of a folder hold a split of a data set: as its README.md declares, as the Hub's, or by their names."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from datasets.data_files import sanitize_patterns

from components.data.errors import SourceError
from components.data.streams import READ, ending

ABOUT = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json"}  # what tools write about the data beside it


class Selection(NamedTuple):
    """What is read of a data set that has several parts.

    subset: the configuration, by its name on the Hub; in a folder, what its README.md declares for it, or the
    sub-folder of that name. split: what is trained on. held_out_split: what is validated on; None lets a hash of the
    prompts decide. files: a glob pattern; only these files, all of them for training. A single file has no parts.
    """

    subset: str | None = None
    split: str = "train"
    held_out_split: str | None = None
    files: str | None = None


def files_of(folder: Path, selection: Selection) -> tuple[list[Path], list[Path]]:
    """Files to train on and held-out ones, in the order of their names; raises SourceError where there are none."""
    if selection.files is not None:
        found = [path for path in _readable(folder) if path.relative_to(folder).match(selection.files)]
        if not found:
            raise SourceError(f"{folder}: no file matches data.files={selection.files}")
        return found, []
    held_out = _split(folder, selection, selection.held_out_split) if selection.held_out_split else []
    if selection.held_out_split and not held_out:
        name = selection.held_out_split
        raise SourceError(
            f"{folder}: no files of the split {name}, expected names such as {name}-00000.parquet. "
            "data.held_out_split=null holds out a share of the prompts instead"
        )
    training = [path for path in _split(folder, selection, selection.split) if path not in held_out]
    if not training:
        name = selection.split
        raise SourceError(
            f"{folder}: no files of the split {name}, expected names such as {name}-00000.parquet. "
            "data.split=… names another"
        )
    return training, held_out


def _split(folder: Path, selection: Selection, split: str) -> list[Path]:
    """The files of one split, as README.md declares them, or else by their names."""
    config = _config(folder, selection.subset)
    inside = folder / str(config.get("data_dir") or "")
    declared = _declared(inside, config["data_files"], split) if "data_files" in config else []
    return declared or _named(inside if config else _within(folder, selection.subset), split)


def _named(folder: Path, split: str) -> list[Path]:
    """The files of one split by their names and folders; where none is called train, all belong to it."""
    found = _readable(folder)
    named = [path for path in found if path.name.startswith(split) or split in path.relative_to(folder).parts[:-1]]
    return named or (found if split == "train" else [])


def _config(folder: Path, subset: str | None) -> dict[str, Any]:
    """What the head of README.md says of a configuration, which is what the Hub goes by; {} where it names none.

    Without a name it is the one marked default, the one called default, or the only one.
    """
    readme = folder / "README.md"
    head = re.match(r"---\n(.*?)\n---", readme.read_text(encoding="utf-8"), re.DOTALL) if readme.is_file() else None
    try:
        configs = yaml.safe_load(head[1]).get("configs", []) if head else []
        named = {str(config.get("config_name", "default")): config for config in configs}
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise SourceError(f"{readme}: cannot be read as a data set's card ({' '.join(str(error).split())})") from None
    marked = [name for name, config in named.items() if config.get("default") is True or name == "default"]
    name = subset or (marked[0] if marked else next(iter(named)) if len(named) == 1 else None)
    if named and name not in named:
        got = f"no configuration {subset!r}" if subset else "no default configuration"
        raise SourceError(f"{readme}: {got} among {', '.join(named)}. data.subset=<name> chooses one of them")
    return named[name] if named else {}


def _declared(folder: Path, data_files: Any, split: str) -> list[Path]:
    """The files that a card assigns to a split by patterns within the folder, whatever that is called.

    As on the Hub, ** at the end is any depth. Of a copy of a part they may be missing: then there are none.
    """
    try:
        patterns = [str(pattern) for pattern in sanitize_patterns(data_files).get(split, [])]
    except (TypeError, ValueError) as error:
        raise SourceError(f"{folder}/README.md: {' '.join(str(error).split())}") from None
    for pattern in patterns:
        if pattern.startswith("/") or ".." in pattern.split("/") or "://" in pattern:
            raise SourceError(f"{folder}/README.md: assigns {pattern} to {split}, expected files of its own folder")
    globs = [re.sub(r"\*\*$", "**/*", pattern) for pattern in patterns]
    return sorted({path for one in globs for path in folder.glob(one) if path.is_file() and ending(path)})


def _within(folder: Path, subset: str | None) -> Path:
    """The sub-folder of a configuration, or the folder itself where it holds files of one alone."""
    if subset is None or (folder / subset).is_dir():
        return folder / (subset or "")
    below = {path.relative_to(folder).parts[0] for path in _readable(folder) if path.parent != folder}
    others = sorted(below - {"data"})
    if others:
        raise SourceError(
            f"{folder}: expected a sub-folder {subset}, got {', '.join(others)}. data.subset names another"
        )
    return folder


def _readable(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and ending(path))
    found = [path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts)]
    for state in [path for path in found if path.name == "state.json"]:
        listed = _saved(state)
        found = [path for path in found if path.parent != state.parent or path in listed]
    found = [path for path in found if path.name not in ABOUT]
    if not found:
        raise SourceError(f"{folder}: no data in this folder, expected files of {READ}")
    return found


def _saved(state: Path) -> list[Path]:
    """The files of a data set that `datasets` saved to disk, of which others beside them are no part."""
    try:
        files = [state.parent / one["filename"] for one in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    except (ValueError, LookupError, TypeError) as error:
        raise SourceError(f"{state}: not the list of files of a saved data set ({error!r})") from None
    for file in files:
        if not file.is_file():
            raise SourceError(f"{state}: names {file.name}, which is not there. Copy the folder again")
    return files
