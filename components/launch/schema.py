"""The constructor signature is the schema: checks a composed config against the signatures of all that it names.

Before anything is imported, read or built, each key next to a `_target_` is looked up in the target's signature. An
unknown key, a value of the wrong type and a missing argument are errors that name the key in full. What exists only at
run time is not missing: AT_RUN_TIME lists what the tasks and stages pass, and where.
"""

import collections.abc
import difflib
import functools
import importlib.util
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypedDict, Union

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from components.artifacts.renamed import RENAMED
from components.launch import composing
from components.launch.signatures import levels_of
from components.system import installing
from components.system.limits import Count, NonNegative

MISSING = "???"
HYDRA_KEYS = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}
SCALARS = (bool, int, float, str, bytes, type(None))
SHARE = Annotated[float, Field(gt=0, le=1)]
LIMITS = {  # on other packages' arguments, beyond which these packages fail late or misbehave
    ("lightning.Trainer", "accumulate_grad_batches"): Count,
    ("lightning.Trainer", "gradient_clip_val"): NonNegative | None,
    ("lightning.Trainer", "gradient_clip_algorithm"): Literal["norm"] | None,  # Stage clips each network by its norm
    ("lightning.Trainer", "log_every_n_steps"): Annotated[int, Field(ge=0)] | None,
    ("lightning.Trainer", "devices"): list[int] | str | Annotated[int, Field(ge=-1)],
    ("lightning.Trainer", "max_epochs"): Count | Literal[-1] | None,
    ("lightning.Trainer", "max_steps"): Count | Literal[-1],
    ("lightning.Trainer", "limit_train_batches"): Count | SHARE | None,
    ("lightning.Trainer", "limit_val_batches"): Count | Annotated[float, Field(ge=0, le=1)] | None,
    ("lightning.Trainer", "val_check_interval"): Count | SHARE | str | dict[str, int] | None,
    ("lightning.Trainer", "check_val_every_n_epoch"): Count | None,
    ("lightning.Trainer", "num_sanity_val_steps"): Annotated[int, Field(ge=-1)] | None,
}
OURS = {("lightning.Trainer", "dry_run"): Count | None}  # beside another package's arguments, and not passed to it
RUN_TIME_VALUES = {("lightning.Trainer", "precision"): Literal["auto"]}  # the composition root replaces them


NEEDS = {  # by target, the optional package that it needs, and the extra that installs it
    "components.loggers.wandb_log.WandB": ("wandb", "wandb"),
    "components.loggers.mlflow_log.MLflow": ("mlflow", "mlflow"),
    "components.training.optimizers.adamw8bit": ("bitsandbytes", "quant"),
}


class Passed(NamedTuple):
    """What a callable gets at run time: its first arguments by position, others by name."""

    first: int = 0
    names: tuple[str, ...] = ()


DATA = Passed(names=("tokenizer", "context", "cache_dir", "seed"))
AT_RUN_TIME = {  # by the key of a `_target_`
    "data": DATA,
    "data.pretraining": DATA,
    "comparisons": DATA,
    "text": DATA,
    "stage": Passed(names=("run", "stop_ids", "pad_id")),
    "stage.optimizer": Passed(first=1),
    "stage.schedule": Passed(names=("step", "total_steps")),
    "tokenizer": Passed(first=1),
    "examination": Passed(first=3),
    "judge": Passed(names=("tokenizer", "to_device", "world")),
}


class ConfigError(ValueError):
    """One line per mistake: the key in full, what was expected, what was given."""


class Common(TypedDict, total=False):
    """Keys of every run that no constructor takes."""

    task: str
    run: str
    seed: int
    gradient_checkpointing: bool | Literal["auto"]
    compile: bool | Literal["auto"]
    context: Count | None
    tokens_at_once: Count
    determinism: bool
    force: bool | Literal["changed"]
    resume: str
    export: Literal["best", "last"]
    selection: dict[str, str]
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    parents: Literal["auto", "never"]
    reads: dict[str, str]
    artifacts: dict[str, str]
    paths: dict[str, str]
    overrides: dict[str, list[str]]
    stages: list[str]
    after_sweep: list[str]
    world: dict[str, int | float | str]
    small_data: dict[str, Count | None] | None
    gate: dict[str, bool | dict[str, int | float | None]] | None


class Schema(NamedTuple):
    """The arguments of a callable. types: annotation by name (Any if there is none); open: whether any other name is
    accepted too."""

    types: dict[str, Any]
    open: bool


def check(cfg: DictConfig) -> None:
    """Raises ConfigError with every mistake of a composed config. Imports nothing whose source is enough."""
    values = composing.plain(cfg)
    problems = [*_walk(values, "")]
    common = typing.get_type_hints(Common, include_extras=True) | {"from": str}  # a keyword in Python
    for name, annotation in common.items():
        if name in values:
            problems += _check_value(values[name], annotation, name)
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))


def schema_of(target: str | Callable[..., Any]) -> Schema:
    """The keyword arguments of a callable, or of the one that a dotted name refers to. **kwargs of a class of ours, or
    derived from one of ours, are its bases' arguments; those of any other make the schema open."""
    annotations: dict[str, Any] = {}
    levels = levels_of(target)
    for level in levels:
        for parameter in level.parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                annotations.setdefault(parameter.name, level.hints.get(parameter.name, Any))
    return Schema(annotations, open=levels[-1].open)


def required_of(target: str | Callable[..., Any]) -> list[str]:
    """The keyword arguments of a callable that have no default, without those that a class itself passes to its
    base."""
    required: list[str] = []
    settled: set[str] = set()
    for level in levels_of(target):
        for parameter in level.parameters:
            wanted = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if wanted and parameter.default is parameter.empty and parameter.name not in settled:
                required.append(parameter.name)
        settled |= {parameter.name for parameter in level.parameters} | level.passes
    return required


def nearest_key(unknown: str, arguments: Sequence[str], compose: Callable[[list[str]], DictConfig]) -> str:
    """The key closest to one that the config does not have, or a sentence on how to add it, or on the keys that exist;
    "" if there is nothing to suggest.

    unknown: the key in full; arguments: of the command line; compose: composes the config of some overrides.
    """
    try:
        parsed = OverridesParser.create().parse_overrides([a for a in arguments if not a.startswith("-")])
        others: list[Any] = [
            f"{o.get_key_element()}={next(iter(o.sweep_string_iterator()))}" if o.is_sweep_override() else o.input_line
            for o in parsed
            if not f"{o.key_or_group}.".startswith(f"{unknown}.")
        ]
        values = composing.plain(compose(others))
    except (HydraException, OmegaConfBaseException):
        return ""
    parent, _, name = unknown.rpartition(".")
    node = _select(values, parent)
    if isinstance(node, dict) and "_target_" in node and name in schema_of(node["_target_"]).types:
        return f"{name} is an argument of {node['_target_']}, left at its default: write +{unknown}=…"
    names = list(_dotted(values, ""))
    inside = [key for key in node if key not in HYDRA_KEYS] if parent and isinstance(node, dict) else []
    if inside:  # by the last name alone, since all share the prefix
        near = [f"{parent}.{key}" for key in _nearest(name, inside)] or [n for n in names if n.endswith(f".{name}")]
    else:
        near = _nearest(unknown, names)
    return near[0] if len(near) == 1 else _did_you_mean(unknown, near or inside or names)


def _walk(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield from _check_call(value, path)
        for key, item in value.items():
            yield from _walk(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _walk(item, f"{path}[{index}]")


def _check_call(node: dict[str, Any], path: str) -> Iterator[str]:
    try:
        schema = schema_of(node["_target_"])
    except Exception as error:  # importing runs other people's code
        reason = " ".join(str(error).split())
        yield f"{path}._target_: cannot import {node['_target_']!r}: {reason}"
        return
    needed, by_extra = NEEDS.get(node["_target_"], ("", ""))
    if needed and importlib.util.find_spec(needed) is None:
        yield installing.missing(path, needed, by_extra)
    for key, value in node.items():
        full = f"{path}.{key}" if path else key
        if (node["_target_"], key) in OURS:
            yield from _check_value(value, OURS[node["_target_"], key], full)
        elif key in schema.types:
            annotation = LIMITS.get((node["_target_"], key), schema.types[key])
            extra = RUN_TIME_VALUES.get((node["_target_"], key))
            yield from _check_value(value, annotation if extra is None else annotation | extra, full)
        elif key not in HYDRA_KEYS and not schema.open:
            hint = f"It is now called {RENAMED[full]}." if full in RENAMED else _did_you_mean(key, list(schema.types))
            yield f"{full}: {node['_target_']} has no argument {key!r}. {hint}"
    passed = AT_RUN_TIME.get(path, None if node.get("_partial_") else Passed())
    if passed is not None:
        given = [name for name in passed.names if name in node]
        yield from (f"{path}.{name}: set by the run, not by its config. Remove it" for name in given)
        yield from _missing(node, path, passed)


def _missing(node: dict[str, Any], path: str, passed: Passed) -> Iterator[str]:
    """Arguments that are neither in the config nor passed at run time."""
    target = node["_target_"]
    types = schema_of(target).types
    first = list(types)[: passed.first + len(node.get("_args_", ()))]
    for name in required_of(target):
        if name not in {*first, *passed.names, *node}:
            full = f"{path}.{name}" if path else name
            yield (
                f"{full}: missing, and {node['_target_']} has no default for it; add +{full}=…, "
                f"expected {_describe(types[name])}"
            )


def _check_value(value: Any, annotation: Any, path: str) -> list[str]:
    """Problems of one value; the arguments of a nested `_target_` are checked against that target's signature."""
    if value == MISSING:
        return [f"{path}: needs a value; set {path}=…"]
    if isinstance(value, dict) and "_target_" in value:
        if not _accepts_object(annotation):
            return [f"{path}: expected {_describe(annotation)}, got an object of {value['_target_']}"]
        return _missing_when_called(value, annotation, path)
    if _holds_target(value):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        inner = _element(annotation)
        return [problem for key, item in items for problem in _check_value(item, inner, f"{path}.{key}")]
    errors = _type_errors(value, annotation)
    if not errors:
        return []
    limited = any(hasattr(part, "__metadata__") for part in (annotation, *typing.get_args(annotation)))
    reason = f" ({errors[0]})" if limited else ""
    choices = _choices(annotation)
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f". Did you mean {near[0]}?" if near else ""
    return [f"{path}: expected {_describe(annotation)}, got {_shown(value)}{reason}{hint}"]


def _missing_when_called(node: dict[str, Any], annotation: Any, path: str) -> list[str]:
    """Missing arguments of a partial, if the annotation says what its call will pass."""
    calls = [typing.get_args(m)[0] for m in _members(annotation) if typing.get_origin(m) is collections.abc.Callable]
    if not calls or not isinstance(calls[0], list) or not node.get("_partial_") or path in AT_RUN_TIME:
        return []
    try:
        return list(_missing(node, path, Passed(first=len(calls[0]))))
    except Exception:  # it cannot be imported, which is reported when the node itself is checked
        return []


def _type_errors(value: Any, annotation: Any) -> list[str]:
    """pydantic's errors for a YAML value as strict JSON: "1" is not accepted for 1, but a list is for a tuple."""
    adapter = _adapter(annotation)
    try:
        if adapter is not None:
            adapter.validate_json(json.dumps([value], default=str))
    except ValidationError as error:
        return [e["msg"] for e in error.errors()]
    return []


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    """For a list of one value of the annotated type; None if pydantic does not know the type."""
    try:
        return TypeAdapter(tuple[annotation], config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return None


def _members(annotation: Any) -> Iterator[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _members(typing.get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def _choices(annotation: Any) -> list[str]:
    literals = [m for m in _members(annotation) if typing.get_origin(m) is Literal]
    return list(dict.fromkeys(str(choice) for literal in literals for choice in typing.get_args(literal)))


def _accepts_object(annotation: Any) -> bool:
    return any(m not in SCALARS and typing.get_origin(m) is not Literal for m in _members(annotation))


def _element(annotation: Any) -> Any:
    """The annotation of a container's elements, Any if there is none."""
    for member in _members(annotation):
        arguments = typing.get_args(member)
        if typing.get_origin(member) is tuple:
            return arguments[0]
        if arguments and typing.get_origin(member) not in (Literal, collections.abc.Callable):
            return arguments[-1]
    return Any


def _holds_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(_holds_target(v) for v in value.values())
    return isinstance(value, list) and any(_holds_target(v) for v in value)


def _describe(annotation: Any) -> str:
    choices = _choices(annotation)
    names = ["one of " + ", ".join(choices)] if choices else []
    for member in _members(annotation):
        if member is type(None):
            names.append("null")
        elif typing.get_origin(member) is not Literal:
            plain = member.__name__ if inspect.isclass(member) and not typing.get_args(member) else str(member)
            names.append(re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", plain))
    return " or ".join(names)


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    """Suggests the closest names, else lists all of them if there are few."""
    if near := _nearest(name, names):
        return f"Did you mean {' or '.join(near[:4])}?"
    return f"It has: {', '.join(names)}." if len(names) <= 20 else ""


def _nearest(name: str, names: Sequence[str]) -> list[str]:
    """The names with the same last part (a forgotten prefix), else the one with the closest spelling."""
    last = name.rpartition(".")[2]
    ending = [n for n in names if n.rpartition(".")[2] == last]
    return ending or difflib.get_close_matches(name, names, n=1)


def _select(values: Any, path: str) -> Any:
    for key in filter(None, path.split(".")):
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _dotted(values: dict[str, Any], path: str) -> Iterator[str]:
    for key, value in values.items():
        full = f"{path}{key}"
        if key not in HYDRA_KEYS:
            yield full
        if isinstance(value, dict):
            yield from _dotted(value, f"{full}.")
