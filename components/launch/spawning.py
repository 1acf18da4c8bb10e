"""Runs train.py in a process of its own: the arguments that repeat or continue this run, and its exit status."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from components.launch import forking
from components.launch.overrides import quoted, written
from components.system.disk import present

# oneDNN, which multiplies matrices on CPUs, caches a kernel for every shape that it meets: 0.6 MB each, up to 1,024. A
# step has up to about 50 shapes; more in the cache takes memory and saves no time that could be measured. oneDNN reads
# this variable before its first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

ROOT = Path(__file__).resolve().parents[2]
CHECKED = "GRADUS_OVERRIDES_CHECKED"  # set if the parent process has already reported unused overrides


@contextmanager
def overrides_checked() -> Iterator[None]:
    """Processes started inside this context do not look for unused overrides."""
    os.environ[CHECKED] = "1"
    try:
        yield
    finally:
        os.environ.pop(CHECKED, None)


def stage_arguments(cfg: DictConfig, entry: str) -> list[str]:
    """train.py's arguments for another stage with this job's overrides, except those of this job's own stage.

    entry: the stage, or stage/label for a variant of it in a folder of its own.
    """
    arguments = [o for o in written(HydraConfig.get()) if not o.startswith(("stage=", "stage.", "stages="))]
    stage, _, label = entry.partition("/")
    arguments += [f"stage={stage}"] + ([f"paths.folder={quoted(entry)}"] if label else [])
    run = run_of_stages(cfg)
    arguments += [f"run={quoted(run)}"] if run != cfg.run else []
    return [*hydra_arguments(HydraConfig.get()), *arguments]


def run_of_stages(cfg: DictConfig) -> str:
    """The run of the stages that this job starts: its own or, in a parameter sweep, one named after the job's folder,
    which keeps them apart from those of other jobs."""
    usual = os.path.join(cfg.paths.logs, cfg.run, cfg.paths.folder)
    if os.path.abspath(cfg.paths.stage) == os.path.abspath(usual):
        return cfg.run
    return os.path.relpath(cfg.paths.stage, cfg.paths.logs)


def same_command(cfg: DictConfig, *exports: str) -> str:
    """The command that continues this run, for messages: the same one, except that force=true and resume=never would
    start from scratch and delete the checkpoints, and resume=<file> would resume from the same checkpoint again.

    exports: artifacts that have not been made yet. Of those that exist, force=true was to replace one that is up to
    date, which another force would keep.
    """
    force = cfg.force is True
    changes = ["force=changed"] * force + ["resume=auto"] * (cfg.resume != "auto")
    earlier = [export for export in exports if present(export)] if force else []
    moved = f", once {', '.join(earlier)} {'is' if len(earlier) == 1 else 'are'} moved away," if earlier else ""
    return " ".join(["the same command", *(["with", *changes] if changes else [])]) + moved


def own_overrides(cfg: DictConfig, entry: str) -> list[str]:
    """The overrides of one entry of a pipeline. A variant, stage/label, has those of its stage, then its own."""
    names = dict.fromkeys((entry.partition("/")[0], entry))
    return [override for name in names for override in cfg.overrides.get(name, [])]


def launch(arguments: Sequence[str], *, forked: bool = False) -> int:
    """Runs train.py with `arguments` in a process of its own and returns its exit status, 128 + n for signal n.

    forked: fork this process, see `forking`, instead of starting a fresh one.

    SIGTERM is passed on. SIGINT from a terminal reaches the process directly; this function then waits for it to end
    and raises KeyboardInterrupt.
    """
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    process = forking.Child(arguments) if forked else subprocess.Popen(command)
    before = signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return code if code >= 0 else 128 - code


def hydra_arguments(hydra: Any) -> list[str]:
    """The flags and hydra.… overrides that another process needs to compose the same config, for a single job."""
    folders = [f"--config-dir={s.path}" for s in hydra.runtime.config_sources if s.provider == "command-line"]
    own = ("hydra.mode=", "hydra.sweep", "hydra.run.dir=")  # specific to this job
    return [
        f"--config-name={hydra.job.config_name}",
        *folders,
        *(o for o in hydra.overrides.hydra if not o.startswith(own)),
        "hydra.mode=RUN",
    ]
