"""What every task needs: its surroundings, the tokenizer of its parents, the card of its artifact."""

import shlex
import time
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from components.artifacts import lineage
from components.artifacts.metadata import load_config, load_tokenizer
from components.launch.schema import schema_of
from components.models.config import GPTConfig
from components.system import processes, provenance
from components.tasks import command_line, staleness
from components.tasks.command_line import identity as identity
from components.tokenizer.tokenizer import Tokenizer


def surroundings(cfg: DictConfig) -> dict[str, Any]:
    """What the run tells its data module besides data settings."""
    return {"cache_dir": cfg.paths.cache, "seed": cfg.seed}


def common_tokenizer(cfg: DictConfig) -> Tokenizer:
    """The tokenizer of all artifacts read; raises ArtifactError if they differ.

    Only the vocabulary of a teacher (stage.teacher) has to be the same: chats are rendered by the student's template.
    """
    teacher = cfg.reads.teacher if "teacher" in cfg.get("stage", {}) else None
    tokenizers = {path: load_tokenizer(path) for path in cfg.reads.values()}
    alike = {path: tokenizer.fingerprint for path, tokenizer in tokenizers.items() if path != teacher}
    lineage.same_tokenizer(alike)
    tokenizer = tokenizers[cfg.reads.tokenizer]
    if teacher is not None:
        lineage.same_vocabulary(
            cfg.reads.model, tokenizer.codec.tokens, teacher, tokenizers[teacher].codec.tokens, "artifacts.teacher"
        )
    return tokenizer


def is_up_to_date(cfg: DictConfig, inputs: dict[str, Any]) -> bool:
    """Whether the export was made from these inputs already, which is then printed."""
    up_to_date = lineage.is_up_to_date(cfg.paths.export, inputs, cfg.force, command_line.in_another_run(cfg))
    if up_to_date:
        staleness.report_up_to_date(cfg)
    return up_to_date


class Read(NamedTuple):
    """What a task reads: its parents by name, their tokenizer, the shape of the model that it is about, and what data
    modules get at run time."""

    parents: dict[str, dict[str, str]]
    tokenizer: Tokenizer
    shape: GPTConfig
    for_data: dict[str, Any]


def read(cfg: DictConfig, path: str) -> Read:
    """What a task about the model at `path` reads. Raises ArtifactError if a parent is missing or has another
    tokenizer, or if the command line names a model other than the one at `path`."""
    parents = lineage.require(dict(cfg.reads), command_line.expected_artifacts(cfg), identity(cfg))
    tokenizer = common_tokenizer(cfg)
    shape, _ = load_config(path, context=cfg.context)
    command_line.check_shape(cfg, path, shape)
    return Read(parents, tokenizer, shape, surroundings(cfg) | {"tokenizer": tokenizer, "context": shape.longest})


def built(settings: DictConfig, **run_time: Any) -> Any:
    """What the settings describe, given those of the values known at run time that its constructor takes."""
    accepted = schema_of(settings._target_).types
    build = instantiate(settings, _partial_=True)
    return build(**{name: value for name, value in run_time.items() if name in accepted})


def card_of(cfg, inputs, parents, tokenizer: Tokenizer, metrics: dict[str, float]) -> dict[str, Any]:
    """The card of an artifact: what it was made from, by what, and its metrics."""
    return {
        "stage": HydraConfig.get().runtime.choices["stage"],
        "run": cfg.run,
        "parents": parents,
        "tokenizer": tokenizer.fingerprint,
        "data": inputs["data (content)"],
        "seed": cfg.seed,
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
        "metrics": metrics,
        "inputs": inputs,
    }


def seconds() -> float:
    """Seconds since the process started, imports included."""
    return round(time.perf_counter() - processes.STARTED, 1)


def report_made(cfg: DictConfig, metrics: dict[str, float], ending: dict[str, Any] | None = None) -> None:
    """Prints where the artifact is, how long it took and its metrics.

    ending: of a training, the card's `exported`, the step that the artifact is of, and `ended_by`, the limit that ended
    it.
    """
    ending = ending or {}
    if "stopped early" in ending:
        print(f"stopped early: {ending['stopped early']}", flush=True)
    if "exported" in ending:
        print("exported: step {step} of {of}, {why}".format(**ending["exported"]), flush=True)
    shown = {k: v for k, v in metrics.items() if k.startswith(("val/", "bytes_per", "pieces")) or k == "train/loss"}
    scores = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
    at = f" at step {metrics['steps']}, ended by {ending['ended_by']}" if "ended_by" in ending else ""
    print(f"made {cfg.paths.export} in {metrics['seconds']:.0f} s{at}: {scores}", flush=True)
    talks = (Path(cfg.paths.export) / "config.json").exists() and load_config(cfg.paths.export)[1] == "CausalLM"
    what, command = ("talk to it", "chat") if talks else ("look at it", "show")
    print(f"{what}: {processes.gradus()} {command} {shlex.quote(cfg.paths.stage)}", flush=True)
