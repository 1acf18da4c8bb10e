"""What every task needs: which one to run, its surroundings, what it was made from, the card of what it makes."""

import logging
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

from components import forking, hub, lineage, processes
from components.exports import load_config, load_tokenizer
from components.folders import present
from components.tasks import given, made, parents, pipeline
from components.tasks.given import identity as identity
from components.tokenizer.tokenizer import Tokenizer

log = logging.getLogger(__name__)


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


def plain(cfg: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def surroundings(cfg: DictConfig) -> dict[str, Any]:
    return {"cache_dir": cfg.paths.cache, "seed": cfg.seed}


def common_tokenizer(cfg: DictConfig) -> Tokenizer:
    """The tokenizer of all artifacts read; raises ArtifactError if they differ."""
    tokenizers = {path: load_tokenizer(path) for path in cfg.reads.values()}
    lineage.same_tokenizer({path: tokenizer.fingerprint for path, tokenizer in tokenizers.items()})
    return tokenizers[cfg.reads.tokenizer]


def is_made(cfg: DictConfig, inputs: dict[str, Any]) -> bool:
    there = lineage.is_made(cfg.paths.export, inputs, cfg.force, given.beside(cfg))
    if there:
        made.say_up_to_date(cfg)
    return there


def card_of(cfg, inputs, parents, tokenizer: Tokenizer, metrics: dict[str, float]) -> dict[str, Any]:
    return {
        "stage": HydraConfig.get().runtime.choices["stage"],
        "run": cfg.run,
        "parents": parents,
        "tokenizer": tokenizer.fingerprint,
        "data": inputs["data (content)"],
        "seed": cfg.seed,
        "commit": lineage.commit(),
        "hardware": lineage.hardware(),
        "versions": lineage.versions(),
        "metrics": metrics,
        "inputs": inputs,
    }


def seconds() -> float:
    """Since the process began, its imports included."""
    return round(time.perf_counter() - processes.STARTED, 1)


def say_made(cfg: DictConfig, metrics: dict[str, float], ending: dict[str, Any] | None = None) -> None:
    """Where the artifact lies, how long it took, what it scored; with the card's `exported`, of which step it is,
    and `ended_by`, the limit that ended training."""
    ending = ending or {}
    if "stopped early" in ending:
        print(f"stopped early: {ending['stopped early']}", flush=True)
    if "exported" in ending:
        print("exported: step {step} of {of}, {why}".format(**ending["exported"]), flush=True)
    shown = {k: v for k, v in metrics.items() if k.startswith(("val/", "bytes_per", "pieces")) or k == "train/loss"}
    figures = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
    at = f" at step {metrics['steps']}, ended by {ending['ended_by']}" if "ended_by" in ending else ""
    print(f"made {cfg.paths.export} in {metrics['seconds']:.0f} s{at}: {figures}", flush=True)
    talks = (Path(cfg.paths.export) / "config.json").exists() and load_config(cfg.paths.export)[1] == "CausalLM"
    what, command = ("talk to it", "chat") if talks else ("look at it", "show")
    print(f"{what}: {processes.gradus()} {command} {shlex.quote(cfg.paths.stage)}", flush=True)
