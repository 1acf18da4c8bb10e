"""Composes and resolves the config of a command line, inside a job or outside of one."""

import os
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from components.launch import artifact_table, forking, parse_cache, resolvers
from components.launch.overrides import as_typed, quoted
from components.launch.spawning import ROOT
from components.launch.sweep_folders import sweep_folder

INTERPOLATIONS: dict[str, str] = {}  # key → value as written, for each value of this job's config that refers to others

parse_cache.install()
resolvers.register()
artifact_table.register()
OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True)


def resolve_interpolations(cfg: DictConfig) -> None:
    """Resolves a config's interpolations in place; INTERPOLATIONS keeps them as written.

    Raises ValueError for a section that is null although other settings refer to keys in it.
    """
    INTERPOLATIONS.clear()
    INTERPOLATIONS.update(_interpolations(OmegaConf.to_container(cfg, resolve=False), ""))
    for name in re.findall(r"\$\{([\w.]+)\}", " ".join(INTERPOLATIONS.values())):
        section = name.partition(".")[0]
        # holds for OmegaConf 2.3: reading the section itself would resolve it
        if section != name and section in cfg and cfg._get_node(section)._is_none():  # type: ignore[union-attr]
            raise ValueError(f"{section}: expected settings, since others refer to {name}; got null")
    OmegaConf.resolve(cfg)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A config as dicts and lists, its interpolations resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def _interpolations(value: Any, path: str) -> Iterator[tuple[str, str]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _interpolations(inner, f"{path}.{key}" if path else str(key))
    if isinstance(value, str) and "${" in value:
        yield path, value


def compose_config(overrides: Sequence[str] = ()) -> DictConfig:
    """The config that `python train.py <overrides>` would run with, all interpolations resolved.

    For tests and scripts. Raises Hydra's and OmegaConf's own errors.
    """
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3", job_name="train"):
        cfg = compose("train", as_typed(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    resolve_interpolations(cfg)
    return cfg


class Composed(NamedTuple):
    """A composed config, Hydra's own part of it, and its INTERPOLATIONS."""

    cfg: DictConfig
    hydra: DictConfig
    interpolations: dict[str, str]


_composed: dict[tuple[str, ...], Composed] = {}  # by train.py's arguments


@contextmanager
def composed(arguments: Sequence[str]) -> Iterator[DictConfig]:
    """The config that train.py would run with on these arguments, composed once per process. Inside the context,
    HydraConfig and INTERPOLATIONS are those of this config.

    Raises ValueError with the reason if the arguments do not compose.
    """
    with _outside_the_job():
        try:
            result = _compose(tuple(arguments))
        except HydraException as error:
            raise ValueError(f"{' '.join(arguments)}: {error}") from error
        HydraConfig.instance().cfg = result.hydra  # type: ignore[assignment]
        INTERPOLATIONS.clear()
        INTERPOLATIONS.update(result.interpolations)
        yield result.cfg


def compose_ahead(commands: Sequence[Sequence[str]]) -> None:
    """Composes the configs that `composed` is about to be asked for, half of them in a second process if there is a
    second CPU. Arguments that do not compose are left to `composed`, which raises their error."""
    wanted = [arguments for arguments in dict.fromkeys(map(tuple, commands)) if arguments not in _composed]
    if len(wanted) < 2 or len(_cpus()) < 2 or not forking.has_one_thread():
        return
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        with suppress(BaseException), os.fdopen(writer, "wb") as pipe:  # the parent process composes what it misses
            pickle.dump(_compose_all(wanted[1::2]), pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        _compose_all(wanted[::2])
        with suppress(EOFError, pickle.UnpicklingError):
            _composed.update(pickle.load(pipe))
    os.waitpid(child, 0)


def _compose_all(commands: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], Composed]:
    with _outside_the_job():
        for arguments in commands:
            with suppress(Exception):
                _compose(arguments)
    return {arguments: _composed[arguments] for arguments in commands if arguments in _composed}


@contextmanager
def _outside_the_job() -> Iterator[None]:
    """Puts this job's Hydra aside, which composes nothing else while it runs a job, and everything back at the end."""
    own, interpolations, running = HydraConfig.instance().cfg, dict(INTERPOLATIONS), GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = running, own
        INTERPOLATIONS.clear()
        INTERPOLATIONS.update(interpolations)


def _compose(arguments: tuple[str, ...]) -> Composed:
    if arguments not in _composed:
        folders = [f"file://{flag.partition('=')[2]}" for flag in arguments if flag.startswith("--config-dir=")]
        search = [f"hydra.searchpath=[{','.join(map(quoted, folders))}]"] if folders else []
        cfg = compose_config([*search, *(argument for argument in arguments if not argument.startswith("--"))])
        hydra: Any = HydraConfig.instance().cfg
        _composed[arguments] = Composed(cfg, hydra, dict(INTERPOLATIONS))
    return _composed[arguments]


def _cpus() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
