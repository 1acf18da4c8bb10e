"""Resolvers: what ${name:…} can stand for in a config, besides other keys."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf


def later(key: str) -> str:
    """${later:key} in `overrides` becomes ${key} for the stage that gets it. By then the run is known, which differs
    between the jobs of a sweep; a plain ${key} would be resolved too early, by the pipeline."""
    return "\\${" + key + "}"  # a config is resolved once, which removes the backslash


def of_world(key: str, otherwise: Any, trained: str = "some", *, _root_: DictConfig) -> Any:
    """${of_world:key,value} is ${key} if that is set and the stage's data is the built-in world's, else the value. For
    settings that were measured on the world. ${of_world:key,value,all}: also the value with adapters or frozen weights,
    for settings about weights that then are not trained."""
    measured = on_world(True, False, _root_=_root_)
    if trained == "all":
        measured = measured and not _root_.get("lora") and not _root_.stage.get("freeze")
    setting = OmegaConf.select(_root_, key) if measured else None
    return otherwise if setting is None else setting


def on_world(value: Any, otherwise: Any, *, _root_: DictConfig) -> Any:
    """${on_world:value,otherwise} is the value if the stage's data is the built-in world's."""
    data = _root_.get("data")
    return value if data is not None and is_builtin(data) else otherwise


def of_depth(name: str, depth: int, vocab_size: int) -> Any:
    """${of_depth:name,depth,vocabulary} is what follows from a model's depth, a field of planning.dial.Dial."""
    from components.planning.dial import dial  # only model=depth pays for it

    return getattr(dial(depth, vocab_size), name)


def is_builtin(data: Mapping[str, Any]) -> bool:
    """Whether a data module's settings make it read the built-in world."""
    return not (data.get("path") or data.get("mixture") or data.get("tasks")) and bool(data.get("world"))


def register() -> None:
    """Makes the resolvers of conf/ known to OmegaConf; a second call changes nothing."""
    OmegaConf.register_new_resolver("later", later, replace=True)
    OmegaConf.register_new_resolver("of_world", of_world, replace=True)
    OmegaConf.register_new_resolver("on_world", on_world, replace=True)
    OmegaConf.register_new_resolver("of_depth", of_depth, replace=True)
