"""Checks what stage=all is about to do before its first stage runs: settings, parents and data of each stage."""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from omegaconf import DictConfig

from components.artifacts import lineage
from components.data.records.errors import SourceError
from components.data.sources.origin import demonstrations_source, origin_of
from components.launch import composing, schema, spawning
from components.launch.overrides import quoted
from components.system import hub
from components.system.disk import present
from components.tasks import command_line, eight_bit, reward_functions

DATA = ("data", "comparisons", "text")  # keys of data modules


class Step(NamedTuple):
    """One stage of several: `stage`, or `stage/label` for a variant of it in a folder of that name, train.py's
    arguments for it, and its floating-point operations if they are known."""

    entry: str
    arguments: list[str]
    operations: float | None = None


def steps_of(cfg: DictConfig) -> list[Step]:
    """The stages of a pipeline, in order."""
    force = [] if cfg.force else ["force=changed"]  # stage=all can replace what its changed settings make stale
    own, run = [], spawning.run_of_stages(cfg)
    if composing.INTERPOLATIONS.get("from") != "${run}" and cfg["from"] != run:
        # what these stages make themselves is still read from their own run
        made = [stage for stage in cfg.stages if stage in cfg.artifacts]
        own = [f"artifacts.{stage}={quoted(os.path.join(cfg.paths.logs, run, stage, 'export'))}" for stage in made]
    return [
        Step(entry, [*spawning.stage_arguments(cfg, entry), *force, *own, *spawning.own_overrides(cfg, entry)])
        for entry in cfg.stages
    ]


def check(steps: list[Step]) -> None:
    """Raises the error that a step would end with later: ConfigError for its settings, ArtifactError for a missing
    parent that no earlier step makes, SourceError for missing data, ValueError for a technique that cannot be used.

    A file in the folder of an earlier step is not checked, since that step may make it.
    """
    exports: set[str] = set()
    folders: list[str] = []
    written = dict(composing.INTERPOLATIONS)
    composing.compose_ahead([step.arguments for step in steps])
    for entry, arguments, _ in steps:
        with composing.composed(arguments) as cfg:
            schema.check(cfg)
            command_line.check_selection(cfg)
            eight_bit.check(cfg)
            reads = reward_functions.reads_of(cfg, exports)
            wanted = {name: path for name, path in reads.items() if not is_there(path, exports)}
            if wanted:
                lineage.require(wanted, command_line.expected_artifacts(cfg), command_line.identity(cfg))
            plain = composing.plain(cfg)
            if (plain.get("stage") or {}).get("techniques"):
                from components.tasks import technique_scores  # imports torch, which no other check needs

                technique_scores.check(cfg)
            for key, settings in _data_of(plain):
                if not any(_within(settings["path"], folder) for folder in folders):
                    _check_data(key, settings, lambda name, entry=entry: _as_written(name, entry, written))
            exports.add(os.path.abspath(cfg.paths.export))
            folders.append(cfg.paths.stage)


def is_there(path: str, made: Collection[str] = ()) -> bool:
    """Whether the path has an artifact, is among those being made, or is a Hub name."""
    return os.path.abspath(path) in made or present(path) or bool(hub.MODEL.fullmatch(path))


def _data_of(plain: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key in DATA:
        settings = plain.get(key)
        if settings and "path" in settings:
            yield key, settings
            if settings.get("pretraining"):
                yield f"{key}.pretraining", settings["pretraining"]


def _check_data(key: str, settings: Mapping[str, Any], named: Any) -> None:
    try:
        origin = origin_of(settings)
        origin.sources()
        if origin.format == "preference":
            demonstrations_source(settings["demonstrations"])
    except LookupError:  # not one of our classes: it checks by itself
        return
    except SourceError as error:
        raise SourceError(re.sub(r"\bdata\.(\w+)", lambda match: named(f"{key}.{match[1]}"), str(error))) from None


def _as_written(key: str, entry: str, written: Mapping[str, str]) -> str:
    """The key that a user set, if an entry's overrides only refer to it: data.path='${files.chat}' → files.chat."""
    referring = rf"\+*{re.escape(key)}='?\$\{{([\w.]+)\}}'?"
    texts = [text for name, text in written.items() if name.startswith(f"overrides.{entry}.")]
    return next((match[1] for match in (re.fullmatch(referring, text) for text in texts) if match), key)


def _within(path: str | None, folder: str) -> bool:
    return path is not None and os.path.abspath(path).startswith(os.path.abspath(folder) + os.sep)
