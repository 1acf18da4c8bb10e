"""Selects the files of a folder that make up a split of a data set: by its README.md, as on the Hub, or by name."""

import functools
import logging
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from components.data.records.errors import SourceError
from components.data.sources.streams import READ, ending, refusal
from components.system.disk import read_json

logger = logging.getLogger(__name__)

# files that tools and people put next to data
_BESIDE = re.compile(
    r"dataset_infos?\.json|dataset_dict\.json|requirements\.txt|_[^.]*|#.*|.*~"
    r"|(readme|licen[cs]e|notice|copying|changelog|citation)(\.\w+)?"
    r"|.*\.(md|rst|py|sh|lock|tmp|crc|swp|bak|log|md5|sha256)",
    re.IGNORECASE,
)
_OTHER_SPLITS = ("test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation", "heldout", "held_out")


class Selection(NamedTuple):
    """Which parts of a data set are read, and by which names.

    subset: the configuration, by its name on the Hub; in a folder, as its README.md declares it, or the sub-folder with
    that name. split: for training. held_out_split: for validation; None decides by a hash of the prompts. files: a name
    or a glob pattern; only these files, all of them for training. A single file has no parts. columns: {field of a
    format: column of the data set}, for columns with other names.
    """

    subset: str | None = None
    split: str = "train"
    held_out_split: str | None = None
    files: str | None = None
    columns: dict[str, str] | None = None


def files_of(folder: Path, selection: Selection) -> tuple[list[Path], list[Path]]:
    """Training files and held-out files, in the order of their names. Raises SourceError if there are none."""
    if selection.files is not None:
        readable = {path.relative_to(folder): path for path in _readable(folder)}
        named = readable.get(Path(selection.files))
        matching = [named] if named else [path for name, path in readable.items() if name.match(selection.files)]
        if not matching:
            raise SourceError(f"{folder}: no file matches data.files={selection.files}")
        _refuse_copies(matching, folder)
        return matching, []
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
            f"{folder}: no files of the split {name}, expected names such as {name}-00000.parquet, "
            f"got {_listed(_readable(folder), folder)}. Set data.split=… to another"
        )
    _refuse_copies([*training, *held_out], folder)
    return training, held_out


def _refuse_copies(files: list[Path], folder: Path) -> None:
    """Raises SourceError if a file exists twice: compressed and not, or compressed in two ways."""
    seen: dict[Path, Path] = {}
    for path in files:
        _, packing = ending(path) or ("", "")
        first = seen.setdefault(path.with_name(path.name[: len(path.name) - len(packing)]), path)
        if first != path:
            raise SourceError(
                f"{folder}: {_listed([first], folder)} and {_listed([path], folder)}: expected only one of them, since "
                "they would be read twice. Remove one, or select what to read with data.files=…"
            )


def _split(folder: Path, selection: Selection, split: str) -> list[Path]:
    """The files of one split, as declared in README.md, or else by name."""
    config = _config(folder, selection.subset)
    inside = folder / _own(folder, str(config.get("data_dir") or ""), "data_dir")
    declared = _declared(folder, inside, config["data_files"], split) if "data_files" in config else []
    return declared or _named(inside if config else _within(folder, selection.subset), split)


def _named(folder: Path, split: str) -> list[Path]:
    """The files of one split: those named after it, or in a folder with its name; or else with its name as a word.

    If no file is named train, all files except those of other splits are for training. Warns about files that are not
    read, except those of other splits when the requested one exists.
    """
    files = _readable(folder)
    named = [path for path in files if _is_of(path, folder, [split], anywhere=False)]
    named = named or [path for path in files if _is_of(path, folder, [split])]
    others = [path for path in files if _is_of(path, folder, _OTHER_SPLITS)]
    if named or split != "train":
        ignored = [path for path in files if path not in named and path not in others] if split == "train" else []
        reason = f"because other files are named after the split {split}"
    else:
        named, ignored = [path for path in files if path not in others], others
        reason = f"because they are not in the split {split}; select files with data.files=…"
    if ignored and named:
        _warn(f"{folder}: ignored, {reason}: {_listed(ignored, folder)}")
    return named


def _is_of(path: Path, folder: Path, splits: Collection[str], *, anywhere: bool = True) -> bool:
    """Whether a file's name is, starts with, or (anywhere) contains one of these words, or a folder's name is one of
    them, also as the value of a partition (split=test)."""
    *folders, name = path.relative_to(folder).parts
    words = "|".join("train(ing)?" if split == "train" else re.escape(split) for split in splits)
    pattern = re.compile(rf"{'(.*[^a-z])?' if anywhere else ''}({words})([^a-z].*)?", re.IGNORECASE)
    return bool(pattern.fullmatch(name)) or any(
        re.fullmatch(f"(.*=)?({words})", part, re.IGNORECASE) for part in folders
    )


def _config(folder: Path, subset: str | None) -> dict[str, Any]:
    """The fields of a configuration in the header of README.md, as the Hub uses them; {} if it has no configurations.

    Without a name: the one marked as default, the one named default, or the only one.
    """
    readme = folder / "README.md"
    head = (
        re.match(r"---\n(.*?)\n---", readme.read_text("utf-8-sig", "replace"), re.DOTALL) if readme.is_file() else None
    )
    try:
        configs = yaml.safe_load(head[1]).get("configs", []) if head else []
        named = {str(config.get("config_name", "default")): config for config in configs}
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise SourceError(f"{readme}: cannot be read as a dataset card ({' '.join(str(error).split())})") from None
    marked = [name for name, config in named.items() if config.get("default") is True or name == "default"]
    name = subset or (marked[0] if marked else next(iter(named)) if len(named) == 1 else None)
    if named and name not in named:
        got = f"no configuration {subset!r}" if subset else "no default configuration"
        raise SourceError(f"{readme}: {got} among {', '.join(named)}. Choose one with data.subset=<name>")
    return named[name] if named and name is not None else {}


def _declared(folder: Path, inside: Path, data_files: Any, split: str) -> list[Path]:
    """The files that a folder's card assigns to a split, by names or by patterns, relative to `inside`.

    As on the Hub, ** at the end matches any depth. Empty if the files are missing, as in a partial copy.
    """
    from datasets.data_files import sanitize_patterns  # takes seconds, so only for folders with a card

    try:
        patterns = [str(pattern) for pattern in sanitize_patterns(data_files).get(split, [])]
    except (TypeError, ValueError) as error:
        raise SourceError(f"{folder}/README.md: {' '.join(str(error).split())}") from None
    globs = [re.sub(r"\*\*$", "**/*", _own(folder, pattern, split)) for pattern in patterns if pattern]
    try:
        matching = [[inside / glob] if (inside / glob).is_file() else inside.glob(glob) for glob in globs]
        files = sorted({path for paths in matching for path in paths if path.is_file()})
    except ValueError as error:
        raise SourceError(f"{folder}/README.md: {split}: {error}") from None
    readable = [path for path in files if ending(path)]
    if files and not readable:
        raise refusal(files[0])
    return readable


def _own(folder: Path, path: str, name: str) -> str:
    """A path from a card, if it is inside the card's folder."""
    if path.startswith("/") or ".." in path.split("/") or "://" in path:
        raise SourceError(f"{folder}/README.md: assigns {path} to {name}, expected files in the same folder")
    return path


def _within(folder: Path, subset: str | None) -> Path:
    """The sub-folder of a configuration, or the folder itself if it contains files of only one."""
    if subset is None or (folder / subset).is_dir():
        return folder / (subset or "")
    below = {path.relative_to(folder).parts[0] for path in _readable(folder) if path.parent != folder}
    others = sorted(below - {"data"})
    if others:
        raise SourceError(
            f"{folder}: expected a sub-folder {subset}, got {', '.join(others)}. Set data.subset to another"
        )
    return folder


def _readable(folder: Path) -> list[Path]:
    """The files of supported types, in the order of their paths, part by part.

    Skips names that start with a dot and files that accompany data (`_BESIDE`). Also skips, with a warning, all other
    types and names that start with an underscore.
    """
    readable, others = [], []
    for path in sorted(_walk(folder)):
        is_private = any(part.startswith("_") for part in path.relative_to(folder).parts)
        if _BESIDE.fullmatch(path.name):
            continue
        if ending(path) is None or is_private:
            others.append(path)
        elif not path.is_file():
            what = "a broken link" if path.is_symlink() else "not a regular file"
            raise SourceError(f"{path}: {what}. Remove it, or put the file there")
        else:
            readable.append(path)
    for state in [path for path in readable if path.name == "state.json"]:
        listed = _saved(state)
        readable = [path for path in readable if path.parent != state.parent or path in listed]
    if not readable:
        got = f"; got {_listed(others, folder)}" if others else ""
        raise SourceError(f"{folder}: no data in this folder, expected files of type {READ}{got}")
    if others:
        _warn(f"{folder}: ignored, because of unsupported types: {_listed(others, folder)}")
    return readable


def _walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files below a folder that are not hidden; follows links to folders."""
    here = folder.resolve()
    if here in above:
        _warn(f"{folder}: ignored, because it is a link to a folder above it")
        return
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise SourceError(f"{folder}: cannot be read ({error.strerror})") from None
    for path in sorted(entries):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, (*above, here))
        else:
            yield path


def _listed(files: list[Path], folder: Path) -> str:
    names = [str(path.relative_to(folder)) for path in files]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@functools.cache
def _warn(message: str) -> None:
    """Logs a warning once, even if a folder is read several times."""
    logger.warning(message)


def _saved(state: Path) -> list[Path]:
    """The files of a data set that `datasets` saved to disk; other files in that folder are not part of it."""
    try:
        items = read_json(state)["_data_files"]
        files = [state.parent / item["filename"] for item in items]
    except (ValueError, LookupError, TypeError) as error:
        reason = error.__cause__ or error
        raise SourceError(f"{state}: not the list of files of a saved data set ({reason!r})") from None
    for file in files:
        if not file.is_file():
            raise SourceError(f"{state}: lists {file.name}, which is missing. Copy the folder again")
    return files
