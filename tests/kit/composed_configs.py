"""Configs as `compose_config` makes them, where many tests ask for almost the same one.

Hydra takes most of its time to read the files that the choices of a command line name; other overrides change the
config that these give. So what the same choices give is composed once per process, and each test changes a copy.
"""

import functools
import os
import pickle
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict

from components.launch import composing, spawning
from components.launch.composing import compose_config as whole  # which a test may replace by the one below
from components.launch.overrides import as_typed

CONF = spawning.ROOT / "conf"


def compose_config(overrides: Sequence[str] = ()) -> DictConfig:
    """What `composing.compose_config` returns, with its errors."""
    typed = as_typed(overrides)
    values = [one for one in typed if not _is_choice(one)]
    try:
        parsed = [_parsed(one) for one in values]
    except HydraException:
        return whole(overrides)
    unusual = any("@" in one.partition("=")[0] or one.startswith("hydra.searchpath") for one in typed)
    if unusual or any(one.is_sweep_override() for one in parsed):
        return whole(overrides)
    cfg = pickle.loads(_chosen(tuple(one for one in typed if _is_choice(one))))  # a seventh of a deepcopy's time
    ConfigLoaderImpl._apply_overrides_to_config(parsed, cfg)
    task = [one for one in typed if not one.startswith("hydra")]
    cfg.hydra.overrides.task = task
    cfg.hydra.job.override_dirname = ",".join(sorted(task))
    cfg.hydra.runtime.cwd = os.getcwd()
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    composing.resolve_interpolations(cfg)
    return cfg


def _is_choice(override: str) -> bool:
    """Whether it names a file of a folder of conf/, and not a value; or is for Hydra."""
    return override.startswith("hydra") or (CONF / override.partition("=")[0].lstrip("+~")).is_dir()


@functools.cache
def _parsed(override: str) -> Override:
    return _parser().parse_overrides([override])[0]


@functools.cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


@functools.cache
def _chosen(choices: tuple[str, ...]) -> bytes:
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="train"):
        return pickle.dumps(compose("train", list(choices), return_hydra_config=True))
