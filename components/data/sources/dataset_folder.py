"""Which files of a folder hold a split of a data set: as its README.md declares, as the Hub's, or by their names."""

import functools
import json
import logging
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from components.data.records.errors import SourceError
from components.data.sources.streams import READ, ending, refusal

logger = logging.getLogger(__name__)

# what tools and people write beside data
_BESIDE = re.compile(
    r"dataset_infos?\.json|dataset_dict\.json|requirements\.txt|_[^.]*|#.*|.*~"
    r"|(readme|licen[cs]e|notice|copying|changelog|citation)(\.\w+)?"
    r"|.*\.(md|rst|py|sh|lock|tmp|crc|swp|bak|log|md5|sha256)",
    re.IGNORECASE,
)
_OTHER_SPLITS = ("test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation", "heldout", "held_out")


class Selection(NamedTuple):
    """What is read of a data set that has several parts.

    subset: the configuration, by its name on the Hub; in a folder, what its README.md declares for it, or the
    sub-folder of that name. split: what is trained on. held_out_split: what is validated on; None lets a hash of the
    prompts decide. files: a name or a glob pattern; only these files, all of them for training. A single file has no
    parts.
    """

    subset: str | None = None
    split: str = "train"
    held_out_split: str | None = None
    files: str | None = None


def files_of(folder: Path, selection: Selection) -> tuple[list[Path], list[Path]]:
    """Files to train on and held-out ones, in the order of their names; raises SourceError where there are none."""
    if selection.files is not None:
        readable = {path.relative_to(folder): path for path in _readable(folder)}
        named = readable.get(Path(selection.files))
        found = [named] if named else [path for name, path in readable.items() if name.match(selection.files)]
        if not found:
            raise SourceError(f"{folder}: no file matches data.files={selection.files}")
        _refuse_copies(found, folder)
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
            f"{folder}: no files of the split {name}, expected names such as {name}-00000.parquet, "
            f"got {_listed(_readable(folder), folder)}. data.split=… names another"
        )
    _refuse_copies([*training, *held_out], folder)
    return training, held_out


def _refuse_copies(files: list[Path], folder: Path) -> None:
    """Raises SourceError where a file is there twice, packed and not, or packed in two ways."""
    seen: dict[Path, Path] = {}
    for path in files:
        _, packing = ending(path) or ("", "")
        first = seen.setdefault(path.with_name(path.name[: len(path.name) - len(packing)]), path)
        if first != path:
            raise SourceError(
                f"{folder}: {_listed([first], folder)} and {_listed([path], folder)}: expected one of them, else its "
                "records are read twice. Remove one, or name what to read with data.files=…"
            )


def _split(folder: Path, selection: Selection, split: str) -> list[Path]:
    """The files of one split, as README.md declares them, or else by their names."""
    config = _config(folder, selection.subset)
    inside = folder / _own(folder, str(config.get("data_dir") or ""), "data_dir")
    declared = _declared(folder, inside, config["data_files"], split) if "data_files" in config else []
    return declared or _named(inside if config else _within(folder, selection.subset), split)


def _named(folder: Path, split: str) -> list[Path]:
    """The files of one split: called so, or in a folder of that name; or else with the name as a word in theirs.

    Where no file is called train, all are read for training but those of another split. What is left out is said,
    but for files of other splits where the wanted one is there.
    """
    found = _readable(folder)
    named = [path for path in found if _is_of(path, folder, [split], anywhere=False)]
    named = named or [path for path in found if _is_of(path, folder, [split])]
    others = [path for path in found if _is_of(path, folder, _OTHER_SPLITS)]
    if named or split != "train":
        left_out = [path for path in found if path not in named and path not in others] if split == "train" else []
        reason = f"as others are the split {split}"
    else:
        named, left_out = [path for path in found if path not in others], others
        reason = f"as not of the split {split}; data.files=… names what to read"
    if left_out and named:
        _warn(f"{folder}: left out, {reason}: {_listed(left_out, folder)}")
    return named


def _is_of(path: Path, folder: Path, splits: Collection[str], *, anywhere: bool = True) -> bool:
    """Whether a file's name is, begins with, or anywhere has one of these words, or a folder's is one of them, also as
    the value of a partition (split=test)."""
    *folders, name = path.relative_to(folder).parts
    words = "|".join("train(ing)?" if split == "train" else re.escape(split) for split in splits)
    pattern = re.compile(rf"{'(.*[^a-z])?' if anywhere else ''}({words})([^a-z].*)?", re.IGNORECASE)
    return bool(pattern.fullmatch(name)) or any(
        re.fullmatch(f"(.*=)?({words})", part, re.IGNORECASE) for part in folders
    )


def _config(folder: Path, subset: str | None) -> dict[str, Any]:
    """What the head of README.md says of a configuration, which is what the Hub goes by; {} where it names none.

    Without a name it is the one marked default, the one called default, or the only one.
    """
    readme = folder / "README.md"
    head = (
        re.match(r"---\n(.*?)\n---", readme.read_text("utf-8-sig", "replace"), re.DOTALL) if readme.is_file() else None
    )
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
    return named[name] if named and name is not None else {}


def _declared(folder: Path, inside: Path, data_files: Any, split: str) -> list[Path]:
    """The files that a folder's card assigns to a split by names, or by patterns, within a folder of it.

    As on the Hub, ** at the end is any depth. Of a copy of a part they may be missing: then there are none.
    """
    from datasets.data_files import sanitize_patterns  # seconds, for folders with a card alone

    try:
        patterns = [str(pattern) for pattern in sanitize_patterns(data_files).get(split, [])]
    except (TypeError, ValueError) as error:
        raise SourceError(f"{folder}/README.md: {' '.join(str(error).split())}") from None
    globs = [re.sub(r"\*\*$", "**/*", _own(folder, pattern, split)) for pattern in patterns if pattern]
    try:
        matching = [[inside / one] if (inside / one).is_file() else inside.glob(one) for one in globs]
        files = sorted({path for paths in matching for path in paths if path.is_file()})
    except ValueError as error:
        raise SourceError(f"{folder}/README.md: {split}: {error}") from None
    found = [path for path in files if ending(path)]
    if files and not found:
        raise refusal(files[0])
    return found


def _own(folder: Path, path: str, name: str) -> str:
    """A path that a card names, if it lies within the card's folder."""
    if path.startswith("/") or ".." in path.split("/") or "://" in path:
        raise SourceError(f"{folder}/README.md: assigns {path} to {name}, expected files of its own folder")
    return path


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
    """The files of kinds that are read, in the order of their paths, part by part.

    Left out are names that begin with a dot, what stands beside data (`_BESIDE`), and, which is said, whatever else is
    of another kind or begins with an underscore.
    """
    found, others = [], []
    for path in sorted(_walk(folder)):
        is_private = any(part.startswith("_") for part in path.relative_to(folder).parts)
        if _BESIDE.fullmatch(path.name):
            continue
        if ending(path) is None or is_private:
            others.append(path)
        elif not path.is_file():
            what = "a link to nothing" if path.is_symlink() else "not a regular file"
            raise SourceError(f"{path}: {what}. Remove it, or put the file there")
        else:
            found.append(path)
    for state in [path for path in found if path.name == "state.json"]:
        listed = _saved(state)
        found = [path for path in found if path.parent != state.parent or path in listed]
    if not found:
        got = f"; got {_listed(others, folder)}" if others else ""
        raise SourceError(f"{folder}: no data in this folder, expected files of {READ}{got}")
    if others:
        _warn(f"{folder}: left out, as not of a kind that is read: {_listed(others, folder)}")
    return found


def _walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All below a folder that is no folder and not hidden; links to folders are followed."""
    here = folder.resolve()
    if here in above:
        _warn(f"{folder}: a link that leads back to a folder above it, left out")
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
    """Once, however often a folder is looked at."""
    logger.warning(message)


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
