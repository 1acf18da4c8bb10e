"""Artifacts that a stage reads but that do not exist yet: planned, announced, and made first, as make does."""

import os
from pathlib import Path
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from components.artifacts import lineage
from components.artifacts.metadata import ArtifactError
from components.launch import artifact_table, composing, spawning, sweep_folders
from components.launch.resolvers import is_builtin
from components.system import processes
from components.system.disk import present
from components.tasks import command_line, duration, plan
from components.tasks.plan import Step

# overrides for the requested stage alone
OWN = ("stage", "stages", "force", "resume", "parents", "data", "reads", "reward", "judge", "paths.folder")
MARKS = ("card.json", "config.json", "tokenizer.json", "tokenizer_config.json")  # an artifact has one of them


class Request(NamedTuple):
    """The command line of the requested stage."""

    flags: list[str]  # and Hydra's own overrides, without which another process would compose something else
    overrides: list[Override]

    def sets(self, *keys: str) -> bool:
        """Whether one of the keys, or one below it, is among the overrides."""
        return any(_within_any(override.key_or_group, keys) for override in self.overrides)


def resolve_reads(cfg: DictConfig) -> None:
    """Resolves what the stage reads, in place: the folder of a stage to the artifact in it, and an SFT model that its
    run does not have to model.path."""
    for path in sorted(set(cfg.reads.values())):
        export = Path(path) / "export"
        if present(path) and not any((Path(path) / mark).exists() for mark in MARKS) and present(export):
            replace(cfg, path, str(export))
    named, sft = cfg.model.get("path"), cfg.artifacts.get("sft")
    if named and sft in cfg.reads.values() and not present(sft) and not _request().sets("artifacts.sft"):
        if processes.rank() == 0:
            print(f"no sft artifact in run {cfg.run}: starting from {named} (model.path) instead", flush=True)
        replace(cfg, sft, named)


def replace(cfg: DictConfig, path: str, by: str) -> None:
    """Replaces one path of an artifact with another, wherever the config of a stage names it."""
    for part in ("model", "artifacts", "reads", "stage", "judge"):
        command_line.replace(cfg.get(part), path, by)


def missing(cfg: DictConfig) -> list[Step]:
    """The stages that make the missing artifacts that this one reads, each after those that it needs itself.

    Raises ArtifactError, naming the command that makes it, for an artifact that this run must not make: one that the
    command line names by path or by run, and any if the stage has data or an experiment of its own, which do not say
    what its parents learn from.
    """
    wanted = _missing(cfg)
    if not wanted:
        return []
    request = _request()
    if cfg.parents == "never" or processes.detect_launcher() != processes.ALONE:
        _refuse(cfg)
    plain = composing.plain(cfg)
    data, experiment = plain.get("data"), HydraConfig.get().runtime.choices.get("experiment")
    if not request.sets("parents") and isinstance(data, dict) and not is_builtin(data):
        _refuse(cfg, "this stage's data do not say what its parents learn from")
    if not request.sets("parents") and experiment:
        _refuse(cfg, f"experiment={experiment} does not say what the parents of this stage learn from")
    made = [stage for stage, usual in cfg.artifacts.items() if usual in wanted]
    composing.compose_ahead([_choices(stage, request)[0] for stage in artifact_table.in_order(made)])
    steps: dict[str, Step] = {}
    for path in wanted:
        _add(cfg, path, request, steps)
    return list(steps.values())


def announcement(cfg: DictConfig, steps: list[Step]) -> str:
    """Such as "rm needs tokenizer, pretrain and sft of run small: about 9 minutes here"."""
    *others, last = [step.entry for step in steps]
    names = f"{', '.join(others)} and {last}" if others else last
    stage = HydraConfig.get().runtime.choices["stage"]
    about = duration.minutes([step.operations for step in steps])
    spent = "" if about is None else f": about {max(1, round(about))} minute{'s' if round(about) > 1 else ''} here"
    return f"{stage} needs {names} of run {cfg.run}{spent}. Made first; parents=never refuses instead"


def _missing(cfg: DictConfig) -> list[str]:
    return list(dict.fromkeys(path for path in cfg.reads.values() if not plan.is_there(path)))


def _add(cfg: DictConfig, path: str, request: Request, steps: dict[str, Step]) -> None:
    """Adds the step that makes the artifact at `path`, after those that it needs."""
    stage = next((name for name, usual in cfg.artifacts.items() if usual == path), None)
    if stage is None or request.sets(f"artifacts.{stage}", "from", "reads"):
        _refuse(cfg)
    assert stage is not None
    if stage in steps:
        return
    arguments = _arguments(stage, request)
    with composing.composed(arguments) as parent:
        if os.path.abspath(parent.paths.export) != os.path.abspath(path) or parent.get("world") != cfg.get("world"):
            _refuse(cfg)
        resolve_reads(parent)
        for needed in _missing(parent):
            _add(parent, needed, request, steps)
        steps[stage] = Step(stage, arguments, duration.operations(stage, parent))


def _arguments(stage: str, request: Request) -> list[str]:
    """train.py's arguments for a parent: the overrides of the requested stage, except those for that stage alone, those
    that a sweep varies, and those of keys that the parent does not have."""
    chosen, others = _choices(stage, request)
    with composing.composed(chosen) as base:
        return [*chosen, *(line for key, line in others.items() if _has(base, key, line))]


def _choices(stage: str, request: Request) -> tuple[list[str], dict[str, str]]:
    """Flags and choices of config groups for a parent, and the other overrides by key."""
    swept = set(os.environ.get(sweep_folders.SWEPT, "").split(",")) - {"", "run", "model"}
    lines = {
        o.key_or_group: str(o.input_line) for o in request.overrides if not _within_any(o.key_or_group, (*OWN, *swept))
    }
    groups = sorted(key for key in lines if (spawning.ROOT / "conf" / key).is_dir())
    return [*request.flags, f"stage={stage}", *map(lines.pop, groups)], lines


def _has(cfg: DictConfig, key: str, line: str) -> bool:
    key = key.rpartition(".")[0] if line.startswith("+") else key
    return not key or OmegaConf.select(cfg, key, default=cfg) is not cfg


def _within_any(key: str, others: tuple[str, ...]) -> bool:
    return any(command_line.within(key, other) for other in others)


def _request() -> Request:
    return Request(spawning.hydra_arguments(HydraConfig.get()), command_line.overrides())


def _refuse(cfg: DictConfig, reason: str = "") -> None:
    """Raises ArtifactError for what is missing."""
    wanted = {name: path for name, path in cfg.reads.items() if not plan.is_there(path)}
    try:
        lineage.require(wanted, command_line.expected_artifacts(cfg), command_line.identity(cfg))
    except ArtifactError as error:
        more = f"\n{reason}; parents=auto makes them anyway, from the built-in world" if reason else ""
        raise ArtifactError(f"{error}{more}") from None
