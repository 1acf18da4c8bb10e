"""What ${name:…} in a config may stand for, beside other keys."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf


def later(key: str) -> str:
    """${later:key} in `overrides` is ${key} for the stage that gets it: by then the run is known, which in a sweep is
    another one for each job. A pipeline's own ${key} would be resolved before."""
    return "\\${" + key + "}"  # a config is resolved once, which takes the backslash away


def of_world(key: str, otherwise: Any, *, _root_: DictConfig) -> Any:
    """${of_world:key,value} is ${key} where that is set and the stage's data is the built-in world's, else the value:
    for settings that were measured on the world."""
    data = _root_.get("data")
    found = OmegaConf.select(_root_, key) if data is not None and is_builtin(data) else None
    return otherwise if found is None else found


def is_builtin(data: Mapping[str, Any]) -> bool:
    """Whether a data module's settings make it read the built-in world."""
    return not data.get("path") and not data.get("mixture") and bool(data.get("world"))


def register() -> None:
    OmegaConf.register_new_resolver("later", later, replace=True)
    OmegaConf.register_new_resolver("of_world", of_world, replace=True)
