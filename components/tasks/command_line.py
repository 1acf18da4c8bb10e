"""Interprets the command line: which limit of training applies, which overrides a stage does not use, and whether the
model that it names is the one that is read."""

import functools
import itertools
import logging
import os
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

from components.artifacts import lineage
from components.artifacts.metadata import ArtifactError
from components.launch import artifact_table, composing, settings, spawning
from components.launch.overrides import as_typed, typed, written
from components.launch.settings import INPUT, UNUSED, Rule
from components.models.config import GPTConfig
from components.system import processes
from components.system.disk import present
from components.training.better import BETTER, mode_of

log = logging.getLogger(__name__)
LIMITS = {"max_steps": -1, "max_epochs": None}  # the trainer's, with the value that means none
# fields of a shape that weights do not determine
OF_THE_RUN = ("context", "dropout", "initializer_range", "model_type", "unused_ids")


def overrides() -> list[Override]:
    """This job's overrides as written, without Hydra's own."""
    return list(_parsed(tuple(written(HydraConfig.get()))))


@functools.cache
def _parsed(lines: tuple[str, ...]) -> tuple[Override, ...]:
    return tuple(OverridesParser.create().parse_overrides(list(lines)))


def compared(cfg: DictConfig) -> dict[str, int | float | str]:
    """The settings by which runs are compared, flat: stage, model, seed, learning rate, and those of the command line
    that decide the result, including the shape of weights that are read; not those that only place or watch a run
    (force, run, …).

    Not all settings: a logger shows the first few columns, and settings that never vary would hide the others.
    """
    plain = composing.plain(cfg)
    flat, rules, choices = settings.flatten(plain), settings.rules_of(plain), HydraConfig.get().runtime.choices
    shown = {"stage": choices["stage"], "model": choices["model"], "seed": cfg.seed}
    if "stage.optimizer.lr" in flat:
        shown["stage.optimizer.lr"] = flat["stage.optimizer.lr"]
    for override in overrides():
        name, key = override.key_or_group, _key_of(override)
        below = [setting for setting in flat if key is None or within(setting, key)]
        decides = any(within(k, "model") or settings.rule_of(k, rules).kind == INPUT for k in below)
        if decides and name not in shown and not override.is_delete():
            value = flat.get(name)
            shown[name] = value if isinstance(value, int | float | str) else override.get_value_element_as_str()
    return shown


def give_precedence(cfg: DictConfig) -> None:
    """Lets what the command line sets take precedence, in place: see resolve_limits and resolve_small_data."""
    keys = {override.key_or_group for override in overrides()}
    resolve_limits(cfg.trainer, keys)
    resolve_small_data(cfg, keys)


def resolve_small_data(cfg: DictConfig, keys: Collection[str]) -> None:
    """Keeps small_data from changing what the command line sets: the length of training, its batches, early
    stopping."""
    small_data = cfg.get("small_data")
    if not small_data:
        return
    if any(f"trainer.{name}" in keys and (cfg.trainer[name] or -1) > 0 for name in LIMITS):
        small_data.steps = None
    if {"data.batch_size", "trainer.accumulate_grad_batches"} & set(keys):
        small_data.batch = None
    if "callbacks.early_stopping.patience" in keys:
        small_data.patience = None


def resolve_limits(trainer: DictConfig, keys: Collection[str]) -> None:
    """A limit of training on the command line replaces the stage's own: steps replace epochs, and vice versa. If both
    are given, training ends at the one that is reached first.

    trainer: its config, changed in place; keys: those of the command line. Raises ValueError for a minimum above a
    limit, since training would still end at the limit, without its last validation.
    """
    for unit in ("steps", "epochs"):
        low, high = trainer.get(f"min_{unit}") or 0, trainer.get(f"max_{unit}") or -1
        if 0 < high < low:
            raise ValueError(f"trainer.min_{unit}={low} is above trainer.max_{unit}={high}; expected at most that")
    limits = {name for name in LIMITS if f"trainer.{name}" in keys and (trainer[name] or -1) > 0}
    for name in LIMITS if len(limits) == 1 else ():
        if name not in limits:
            trainer[name] = LIMITS[name]


def check_selection(cfg: DictConfig) -> None:
    """Raises ValueError if export=best or early stopping would take the worst weights for the best: setting the metric
    alone keeps the mode of the stage's own metric."""
    callbacks = cfg.get("callbacks") or {}
    saving, stopping = (callbacks.get(name) or {} for name in ("checkpoints", "early_stopping"))
    used = [saving] * (saving.get("export") == "best") + [stopping] * (stopping.get("patience") is not None)
    for metric, mode in ((user.get("metric"), user.get("mode")) for user in used if cfg.task == processes.TRAINS):
        better = mode_of(str(metric)) or mode
        if better != mode and mode in BETTER:
            extreme = {"min": "lowest", "max": "highest"}[mode]
            raise ValueError(
                f"selection.mode={mode} takes the {extreme} {metric} for the best. Set selection.mode={better}"
            )


def replace(node: Any, value: str, by: str) -> None:
    """Replaces `value` with `by` everywhere in a resolved config."""
    keys = list(node) if isinstance(node, DictConfig) else range(len(node)) if isinstance(node, ListConfig) else ()
    for key in keys:
        if node[key] == value:
            node[key] = by
        else:
            replace(node[key], value, by)


def warn_of_unused(cfg: DictConfig) -> None:
    """Warns about the overrides that this stage does not use, with reasons, unless its parent process has done so."""
    reasons = {} if processes.rank() or spawning.CHECKED in os.environ else unused(cfg)
    if reasons:
        stage = HydraConfig.get().runtime.choices["stage"]
        log.warning(f"stage={stage} does not use:{_listed(reasons)}")


def warn_of_unused_by_all(cfg: DictConfig, entries: Mapping[str, list[str]]) -> None:
    """Warns about the overrides of stage=all that none of its stages uses, and about those of one stage that the stage
    does not use.

    entries: train.py's arguments for each. Raises ValueError for arguments that do not compose, before any stage runs.
    """
    common: dict[str, str] = {}
    texts = [text for key, text in composing.INTERPOLATIONS.items() if within(key, "overrides")]
    used_here = ["overrides", *_names_in(*texts)]
    referred = {o.input_line for o in overrides() if any(_about(name, o.key_or_group) for name in used_here)}
    for number, (entry, arguments) in enumerate(entries.items()):
        with composing.composed(arguments) as stage:
            reasons = unused(stage)
        of_its_own = as_typed(spawning.own_overrides(cfg, entry))
        own = {line: reason for line, reason in reasons.items() if line in of_its_own}
        if own:
            log.warning(f"stage={entry} does not use:{_listed(own)}")
        left = reasons.keys() & common.keys() if number else reasons.keys() - referred - own.keys()
        common = {line: reason for line, reason in reasons.items() if line in left}
    if common:
        log.warning(f"no stage of {', '.join(entries)} uses:{_listed(common)}")


def unused(cfg: DictConfig) -> dict[str, str]:
    """{override: reason} of this job's overrides that change nothing that its stage uses."""
    plain = composing.plain(cfg)
    rules, keys = settings.rules_of(plain), list(settings.flatten(plain))
    key_by_line = {str(override.input_line): _key_of(override) for override in overrides()}
    return {
        line: settings.rule_of(key, rules).reason
        for line, key in key_by_line.items()
        if key is not None and not _is_used(key, keys, rules)
    }


def _key_of(override: Override) -> str | None:
    """The key that an override sets; None for a choice that sets several sections or names the run, as a model does."""
    group = spawning.ROOT / "conf" / override.key_or_group
    if not group.is_dir():
        return override.key_or_group
    file = group / f"{override.value()}.yaml"
    several = file.exists() and "@package _global_" in file.read_text(encoding="utf-8").partition("\n")[0]
    return None if several or override.key_or_group in ("model", "stage") else override.package or group.name


def _is_used(key: str, keys: list[str], rules: list[Rule], seen: frozenset[str] = frozenset()) -> bool:
    """Whether a key, one below it, or one that refers to either, is used."""
    below = [other for other in keys if within(other, key)] or [key]
    if any(settings.rule_of(other, rules).kind != UNUSED for other in below):
        return True
    referring = [
        other
        for other, text in composing.INTERPOLATIONS.items()
        if other not in seen and any(_about(name, key) for name in _names_in(text))
    ]
    return any(_is_used(other, keys, rules, seen | {key, *referring}) for other in referring)


def within(key: str, other: str) -> bool:
    """Whether a key is another or lies below it."""
    return key == other or key.startswith(f"{other}.")


def _about(name: str, key: str) -> bool:
    """Whether one is within the other."""
    return within(name, key) or within(key, name)


def _names_in(*texts: str) -> list[str]:
    """The keys that interpolations in texts refer to: those in ${a.b} and in ${resolver:a.b,c}."""
    return [name for inner in re.findall(r"\$\{([^{}]*)\}", " ".join(texts)) for name in re.split("[:,]", inner)]


def _listed(reasons: Mapping[str, str]) -> str:
    return "".join(f"\n  {line} ({reason})" for line, reason in reasons.items())


def starts_from(cfg: DictConfig) -> str | None:
    """The artifact with the weights that a training starts from; None if it starts from random ones."""
    return cfg.reads.get("model") or cfg.model.get("path")


def advise_rate(cfg: DictConfig, parents: Mapping[str, Mapping[str, str]]) -> None:
    """Warns if all weights of a published model would be trained at the learning rate of small models, a stage's
    default. parents: what the stage reads, by name, as `lineage.require` returns it."""
    source = parents.get("model", parents["tokenizer"])  # pretraining continues from the folder of its tokenizer
    if not starts_from(cfg) or source["stage"] != lineage.UNKNOWN or cfg.lora:
        return
    if not any(_about(key, "stage.optimizer.lr") for override in overrides() if (key := _key_of(override))):
        log.warning(
            f"stage.optimizer.lr: the default, {cfg.stage.optimizer.lr:g}, is for small models. For all weights of a "
            "published one 2e-5 is usual in pretraining and SFT, 1e-5 for a reward model, 1e-6 on comparisons and in "
            "RL; lora=default trains adapters, at ten times these rates"
        )


def check_shape(cfg: DictConfig, path: str, shape: GPTConfig) -> None:
    """Compares the model of the config with the one at `path` that the stage reads, whose shape is what counts.

    If they differ, raises ArtifactError naming both if the command line sets model=… or model.<key>=…, and warns if
    only the name of the run is that of the other model.
    """
    keys = {override.key_or_group for override in overrides()}
    if "path" in cfg.model and not present(cfg.model.path):
        return  # on the Hub, and not read by this stage
    named, choice = instantiate(cfg.model), HydraConfig.get().runtime.choices["model"]
    names = [field.name for field in fields(GPTConfig)]
    names = [name for name in names if name not in OF_THE_RUN or f"model.{name}" in keys]
    names = [name for name in names if name != "vocab_size" or named.vocab_size]
    differing = [name for name in names if getattr(named, name) != getattr(shape, name)]
    if not differing:
        return
    both = [", ".join(f"{name} {getattr(config, name)}" for name in differing) for config in (named, shape)]
    text = f"model={choice} has {both[0]}, but this stage reads the model at {path}, which has {both[1]}"
    if any(within(key, "model") for key in keys):
        raise ArtifactError(
            f"{text}. Leave out model=… and model.<key>=…, which only shape new models (run=<name> names the run), "
            f"or read a matching model: artifacts.<stage>=<folder>"
        )
    if cfg.run == choice and processes.rank() == 0:
        log.warning(f"{text}, although the run is called {choice}; run=<name> names it")


def expected_artifacts(cfg: DictConfig) -> dict[str, str]:
    """The usual paths of the artifacts that this stage reads and of those that they are made from, by stage, each after
    those that it is made from. Entries of `artifacts` not named after a stage, such as a teacher, do not count."""
    stages = {path: stage for stage, path in cfg.artifacts.items() if stage in artifact_table.read_by()}
    read = [stages[path] for path in cfg.reads.values() if path in stages]
    return {stage: cfg.artifacts[stage] for stage in artifact_table.in_order(read) if stage in cfg.artifacts}


def in_another_run(cfg: DictConfig) -> str:
    """The command that runs this job in another run, from the same parents."""
    kept = [typed(str(o.input_line)) for o in overrides() if o.key_or_group not in ("run", "from")]
    names = (f"{cfg.run}-{number}" for number in itertools.count(2))
    name = next(name for name in names if not os.path.exists(os.path.join(cfg.paths.logs, name)))
    return shlex.join(["python", "train.py", *kept, f"run={name}", *([f"from={cfg['from']}"] if cfg.reads else [])])


def identity(cfg: DictConfig) -> str:
    """The overrides that name this run's folder, for suggested commands."""
    model = HydraConfig.get().runtime.choices["model"]
    parts = [f"model={model}"]
    parts += [shlex.quote(f"run={cfg.run}")] if cfg.run != model else []
    parts += [shlex.quote(f"paths.logs={cfg.paths.logs}")] if cfg.paths.logs != "logs" else []
    return " ".join(parts)
