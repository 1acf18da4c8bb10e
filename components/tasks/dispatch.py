"""Runs the task that a stage names, after the parents that it lacks and the models that it fetches."""

import time
from collections.abc import Callable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_method
from omegaconf import DictConfig

from components.launch import forking
from components.system import hub, processes
from components.system.disk import present
from components.tasks import given, made, parents, pipeline


def run(cfg: DictConfig, imported: Callable[[], None] = lambda: None) -> None:
    """Runs the task that the stage names, unless it is up to date, which takes no torch.

    Models that are named as on the Hub are fetched first. imported: called once Lightning is.
    """
    given.settle(cfg)
    given.say_unused(cfg)
    given.check_selection(cfg)
    if cfg.task == processes.STARTS_OTHERS:
        get_method(cfg.task)(cfg)
        return
    _make_parents(cfg)
    fetch_models(cfg)
    if made.is_up_to_date(cfg):
        return
    with forking.importing():
        from components.tasks.placement import in_memory  # torch and Lightning come with it

        get_method(cfg.task)
    imported()
    with in_memory(cfg):
        get_method(cfg.task)(cfg)


def _make_parents(cfg: DictConfig) -> None:
    parents.settle(cfg)
    steps = parents.missing(cfg)
    if steps:
        print(parents.announcement(cfg, steps), flush=True)
        own = HydraConfig.get().runtime.choices["stage"]
        pipeline.run_all(steps, [*(step.entry for step in steps), own])
        processes.STARTED = time.perf_counter()  # of this stage's own work
        print(f"\n[{len(steps) + 1}/{len(steps) + 1}] {own}", flush=True)


def fetch_models(cfg: DictConfig) -> None:
    """Puts a folder below paths.cache in the place of every Hub name, `owner/name[@revision]`, that the stage reads.

    Raises HubError where a name is neither a folder nor to be had from the Hub.
    """
    reads = sorted(set(cfg.reads.values()))
    for name in [path for path in reads if hub.MODEL.fullmatch(path) and not present(path)]:
        folder = str(hub.fetched(name, Path(cfg.paths.cache) / "models"))
        parents.replace(cfg, name, folder)
