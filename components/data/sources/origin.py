"""Where a data module's records come from, by its settings alone, without importing torch or `datasets`.

A data module gets its sources here. Code that only needs to know whether they exist or have changed does not need the
module.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from components.data.records.errors import SourceError
from components.data.sources import builtin
from components.data.sources.dataset_folder import Selection
from components.data.sources.procedural import Problems, problems_source
from components.data.sources.source import Source, digest, given, open_source, renamed

WORLD = "world"  # in place of a path: the built-in one
NAMES = ("text", "chat", "preference", "unpaired", "prompts")
FORMATS = {f"components.data.{name}.{name.title()}Data": name for name in NAMES}


class Origin(NamedTuple):
    """The settings that decide where records come from.

    format: one of NAMES; sizes: of the built-in world's records, see `world_sizes`.
    The first of records, path, mixture, problems and world that is set is used. read_columns: those of tables to
    read; None: all.
    """

    format: str
    path: str | None
    selection: Selection
    mixture: list[dict[str, Any]] | None
    root: str | None
    world: dict[str, Any] | None
    sizes: Mapping[str, Any]
    read_columns: Collection[str] | None = None
    problems: Problems | None = None
    records: Sequence[Mapping[str, Any]] | None = None

    @property
    def is_builtin(self) -> bool:
        others = (self.records, self.path, self.mixture or None, self.problems)
        return self.world is not None and all(other is None for other in others)

    def sources(self) -> list[tuple[Source, float]]:
        """The sources with their weights. Raises SourceError for one that does not exist."""
        if self.records is not None:
            return [(renamed(given(self.records), self.selection.columns), 1.0)]
        if self.path is not None:
            return [(open_source(str(self.path), selection=self.selection, columns=self.read_columns), 1.0)]
        if self.mixture:
            return [_part(i, part, self.root, self.read_columns) for i, part in enumerate(self.mixture)]
        if self.problems is not None:
            return [(problems_source(self.problems), 1.0)]
        if self.world is not None:
            return [(builtin.world_source(self.world, self.format, dict(self.sizes)), 1.0)]
        raise SourceError("no data: set data.path to a file, folder or Hub name, or choose a data set with data=…")

    def fingerprint(self) -> str:
        """sha256 of the untokenized data, in hex: file contents, world parameters, or Hub name and revision."""
        return digest([self.format, [[source.fingerprint(), weight] for source, weight in self.sources()]])


def world_sizes(format: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of the built-in world's records, from a data module's settings; see components.data.sources.builtin."""
    if format == "text":
        return {"num_documents": settings["num_documents"]}
    if format == "chat":
        return {"demonstrations": settings["demonstrations"]}
    if format in ("preference", "unpaired"):
        share, comparisons = settings["val_fraction"], settings["comparisons"]
        held_out = max(1, round(comparisons * share)) if share else 0
        sizes = {"held_out": held_out} | {name: settings[name] for name in ("comparisons", "completions")}
        return sizes | {"draw": settings["answers_seed"]}  # by its earlier name, which is part of fingerprints
    return {}


def origin_of(settings: Mapping[str, Any]) -> Origin:
    """The origin of a data module's config. Raises LookupError for a class that is not ours, and for an absent setting,
    whose default only its class has."""
    format = FORMATS[settings["_target_"]]
    selection = Selection(*(settings[name] for name in Selection._fields))
    sizes = world_sizes(format, settings) if settings["world"] else {}
    mixture, root, world = (settings[name] for name in ("mixture", "root", "world"))
    problems = None
    if settings.get("tasks") is not None:
        problems = Problems.of(*(settings[name] for name in ("tasks", "task_problems", "task_seed", "task_system")))
    where = (settings["path"], selection, mixture, root, world)
    return Origin(format, *where, sizes, problems=problems, records=settings.get("records"))


def fingerprint_of(settings: Mapping[str, Any]) -> str:
    """The fingerprint of the data module with this config. Raises LookupError as `origin_of` does."""
    own = origin_of(settings).fingerprint()
    if FORMATS[settings["_target_"]] == "preference":
        return with_demonstrations(own, settings["demonstrations"])
    pretraining = settings.get("pretraining")
    return own if pretraining is None else digest([own, fingerprint_of(pretraining)])


def demonstrations_source(path: str | None) -> Source | None:
    """The demonstrations whose scores a reward model should average zero on: a file, a folder or a Hub name. None if
    they are the world's or the best answers of the comparisons."""
    if path in (None, WORLD):
        return None
    try:
        return open_source(str(path))
    except SourceError as error:
        raise SourceError(str(error).replace("data.path", "data.demonstrations")) from None


def with_demonstrations(fingerprint: str, path: str | None) -> str:
    """The fingerprint of comparisons and of the demonstrations at `path`, if they have a source of their own."""
    source = demonstrations_source(path)
    return fingerprint if source is None else digest([fingerprint, source.fingerprint()])


def _part(
    number: int, part: dict[str, Any], root: str | None, read_columns: Collection[str] | None
) -> tuple[Source, float]:
    unknown = set(part) - {"path", "weight", "name", *Selection._fields}
    weight, name = part.get("weight"), part.get("name")
    if unknown or "path" not in part or not isinstance(weight, int | float) or not weight > 0:
        optional = ", ".join(f"{field}?" for field in ("name", *Selection._fields))
        raise SourceError(f"mixture[{number}]: expected {{path, weight > 0, {optional}}}, got {dict(part)}")
    path, remedy = str(part["path"]), f"Set data.mixture[{number}].path to a local copy"
    if name is not None:
        remedy = f"Set data.root=<folder> to local copies of all parts, with this one in the sub-folder {name}"
    if root is not None:
        path = str(Path(root).expanduser() / (name or ""))
        if name is None or not Path(path).is_dir():
            raise SourceError(f"mixture[{number}]: data.root={root} needs a sub-folder named after this part, {name}")
    columns = part.get("columns")
    if columns is not None and not isinstance(columns, dict):
        raise SourceError(f"mixture[{number}].columns: expected {{field: column}}, got {columns}")
    selection = Selection(**{field: part[field] for field in Selection._fields if field in part})
    return open_source(path, name, selection=selection, columns=read_columns, remedy=remedy), float(weight)
