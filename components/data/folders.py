"""Which files of a folder hold a split of a data set: as its README.md declares, as the Hub's, or by their names."""

import re
from pathlib import Path
from typing import NamedTuple

import datasets

from components.data.errors import SourceError

SUFFIXES = (".txt", ".json", ".json.gz", ".jsonl", ".jsonl.gz", ".parquet")  # none ends another


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


def suffix(path: Path) -> str | None:
    """The ending of a file that can be read, or None."""
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)


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
    """The files of one split; of a folder where none is called train, all belong to it."""
    declared = _declared(folder, selection.subset).get(split)
    if declared:
        return declared
    found = _readable(_within(folder, selection.subset))
    named = [path for path in found if path.name.startswith(split) or split in path.relative_to(folder).parts[:-1]]
    return named or (found if split == "train" else [])


def _declared(folder: Path, subset: str | None) -> dict[str, list[Path]]:
    """Files by split, as the head of README.md assigns them to the configuration: what the Hub goes by."""
    readme = folder / "README.md"
    head = re.match(r"---\n(.*?)\n---", readme.read_text(encoding="utf-8"), re.DOTALL) if readme.is_file() else None
    if not head or not re.search(r"^configs:", head[1], re.MULTILINE):
        return {}
    try:
        found = datasets.load_dataset_builder(str(folder), subset).config.data_files or {}
    except FileNotFoundError:  # a copy of a part; the names of its files say which
        return {}
    except ValueError as error:
        said = " ".join(str(error).split())
        raise SourceError(f"{readme}: {said}. data.subset names one of them") from None
    return {str(split): sorted(map(Path, files)) for split, files in found.items()}


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
    found = sorted(path for path in folder.rglob("*") if path.is_file() and suffix(path))
    found = [path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts)]
    if not found:
        raise SourceError(f"{folder}: no data in this folder, expected files of {', '.join(SUFFIXES)}")
    return found
