"""Runs the task that a stage names, after making missing parents and fetching models."""

import gc
import time
from collections.abc import Callable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_method
from omegaconf import DictConfig

from components.launch import run_folder
from components.system import hub, processes
from components.system.disk import present
from components.tasks import command_line, eight_bit, parents, pipeline, reward_functions, staleness


def run(cfg: DictConfig, imported: Callable[[], None] = lambda: None) -> None:
    """Runs the task that the stage names unless the stage is up to date, which is checked without torch.

    Models with a Hub name are fetched first. imported: called once Lightning is imported.
    """
    command_line.give_precedence(cfg)
    command_line.warn_of_unused(cfg)
    command_line.check_selection(cfg)
    eight_bit.check(cfg)
    if cfg.trainer.dry_run is not None:
        from components.tasks import dry_run  # imports torch and Lightning

        dry_run.show(cfg)
        run_folder.drop_unused()
        return
    reward_functions.check(cfg)
    reward_functions.settle(cfg)
    if cfg.task == processes.STARTS_OTHERS:
        get_method(cfg.task)(cfg)
        return
    _make_parents(cfg)
    fetch_models(cfg)
    if staleness.is_up_to_date(cfg):
        return
    from components.tasks.placement import in_memory  # imports torch and Lightning

    get_method(cfg.task)
    imported()
    gc.enable()  # train.py turns it off at its start
    with in_memory(cfg):
        get_method(cfg.task)(cfg)


def _make_parents(cfg: DictConfig) -> None:
    parents.resolve_reads(cfg)
    steps = parents.missing(cfg)
    if steps:
        print(parents.announcement(cfg, steps), flush=True)
        own = HydraConfig.get().runtime.choices["stage"]
        pipeline.run_all(steps, [*(step.entry for step in steps), own])
        processes.STARTED = time.perf_counter()  # of this stage's own work
        print(f"\n[{len(steps) + 1}/{len(steps) + 1}] {own}", flush=True)


def fetch_models(cfg: DictConfig) -> None:
    """Replaces every Hub name, `owner/name[@revision]`, that the stage reads with a folder below paths.cache.

    Raises HubError if a name is neither a folder nor available from the Hub.
    """
    reads = sorted(set(cfg.reads.values()))
    for name in [path for path in reads if hub.MODEL.fullmatch(path) and not present(path)]:
        folder = str(hub.fetched(name, Path(cfg.paths.cache) / "models"))
        parents.replace(cfg, name, folder)
