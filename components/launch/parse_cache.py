"""Parses each text once per process: files of conf/, with libyaml, and the interpolations in them.

OmegaConf parses in Python, and a pipeline composes a config for each of its stages from mostly the same files. Without
this module that is most of the time that `stage=all` takes when everything is up to date. Holds for OmegaConf 2.3;
tests/launch/test_parse_cache.py fails if another version no longer calls the functions that are replaced here.
"""

import functools
import io
import pickle
from typing import Any

import omegaconf._utils
import omegaconf.base
import yaml
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

# holds for OmegaConf 2.3
_load, _parse, usual_loader = OmegaConf.load, omegaconf.base.parse, omegaconf._utils.get_yaml_loader


@functools.cache
def loader() -> Any:
    """OmegaConf's loader of YAML, parsing with libyaml, ten times as fast, unless PyYAML was built without it."""
    usual = usual_loader()
    return type("Loader", (yaml.CSafeLoader, usual), {}) if yaml.__with_libyaml__ else usual


@functools.cache
def _loaded(text: str) -> bytes:
    return pickle.dumps(_load(io.StringIO(text)))  # Hydra modifies what it loads, and pickle copies fastest


def load(file: Any) -> Any:
    """`OmegaConf.load`, with a new config for each caller. Raises ConfigCompositionException for what is not YAML."""
    if not hasattr(file, "read"):
        return _load(file)
    try:
        return pickle.loads(_loaded(file.read()))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else str(error).splitlines()[0]
        name = getattr(file, "name", "a config")
        raise ConfigCompositionException(f"{name} is not valid YAML: {reason}") from None


def install() -> None:
    """Replaces OmegaConf's functions, for everything that runs in this process."""
    setattr(OmegaConf, "load", staticmethod(load))  # noqa: B010 (a type checker allows no assignment here)
    omegaconf._utils.get_yaml_loader = loader  # holds for OmegaConf 2.3
    omegaconf.base.parse = functools.cache(_parse)
