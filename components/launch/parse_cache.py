"""Parses each text once per process: files of conf/, and the interpolations in them.

OmegaConf parses in Python, and a pipeline composes a config for each of its stages from mostly the same files. Without
these caches that is most of the time that `stage=all` takes when everything is up to date. Holds for OmegaConf 2.3;
tests/launch/test_parse_cache.py fails if another version no longer calls the functions that are replaced here.
"""

import functools
import io
import pickle
from typing import Any

import omegaconf.base
from omegaconf import OmegaConf

_load, _parse = OmegaConf.load, omegaconf.base.parse


@functools.cache
def _loaded(text: str) -> bytes:
    return pickle.dumps(_load(io.StringIO(text)))  # Hydra modifies what it loads, and pickle copies fastest


def load(file: Any) -> Any:
    """`OmegaConf.load`, with a new config for each caller."""
    return pickle.loads(_loaded(file.read())) if hasattr(file, "read") else _load(file)


def install() -> None:
    """Replaces OmegaConf's functions, for everything that runs in this process."""
    setattr(OmegaConf, "load", staticmethod(load))  # noqa: B010 (a type checker allows no assignment here)
    omegaconf.base.parse = functools.cache(_parse)
