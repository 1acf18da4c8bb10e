"""A sweep: the keys that it varies, a process for each of its jobs, their table, and the summary after them.

Imports nothing heavy, so that `python train.py --help` and shell completion answer at once.
"""

import itertools
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from components.launch import spawning
from components.launch.overrides import quoted, written
from components.launch.spawning import hydra_arguments, overrides_checked
from components.launch.sweep_folders import SWEPT, naming_keys, parsed

log = logging.getLogger(__name__)
STOPPED = (124, 130, 138, 143)  # out of time, SIGINT, SIGUSR1, SIGTERM


class Job(NamedTuple):
    """A finished job of a sweep: its overrides, folder, exit status, the metric by which it is compared, and the mode
    of its selection if that is by the same metric."""

    overrides: list[str]
    folder: str
    code: int
    metric: str | None
    mode: str | None


JOBS: list[Job] = []  # of this process's sweep so far


class Sweep(Callback):
    """Records which keys a sweep varies, for `sweep_folder`, since a job sees only its own values. When all jobs are
    done, runs the job that the overrides in config.after_sweep describe, if any: a summary of them."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        os.environ[SWEPT] = ",".join(_swept(config.hydra))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints the table of the jobs, and runs after_sweep once per run that the sweep wrote to.

        Exits with the status of the first job or summary that failed. Not reached if a failure ended the sweep.
        """
        os.environ.pop(SWEPT, None)
        jobs, failed = list(JOBS), [job for job in JOBS if job.code]
        JOBS.clear()
        if any(Path(job.folder, "export/card.json").exists() for job in jobs):
            from components.evaluation.seeds import sweep_table  # imports torch

            print("\n".join(sweep_table.lines(jobs)), flush=True)
        for job in failed:
            log.error(f"failed with exit status {job.code}: {' '.join(job.overrides)} (see {job.folder})")
        if config.get("after_sweep") and len(failed) < max(len(jobs), 1):
            self._after(config)
        if failed:
            again = spawning.same_command(config, *(os.path.join(job.folder, "export") for job in failed))
            log.error(f"{len(failed)} of {len(jobs)} jobs failed; {again} reruns them, and only them")
            raise SystemExit(failed[0].code)

    def _after(self, config: DictConfig) -> None:
        given, swept = parsed(written(config.hydra)), _swept(config.hydra)
        others = {"stage", "stages", *swept}
        kept = [o for o in given if o.key_or_group not in others and not o.key_or_group.startswith("stage.")]
        common = [str(o.input_line) for o in kept]
        settings: Any = OmegaConf.to_container(config, resolve=False)
        keys = naming_keys(str(swept["run"].input_line) if "run" in swept else settings["run"])
        naming = [o for key, o in swept.items() if key in keys and o.is_sweep_override()]
        runs = [[f"{o.key_or_group}={value}" for value in o.sweep_string_iterator()] for o in naming]
        for run in itertools.product(*runs):
            with overrides_checked():  # they were meant for the jobs
                code = spawning.launch([*hydra_arguments(config.hydra), *common, *run, *config.after_sweep])
            if code:
                raise SystemExit(code)


def is_sweep_job() -> bool:
    """Whether this job belongs to a multirun, and so must run in a process of its own."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def run_sweep_job(cfg: DictConfig) -> None:
    """Runs a multirun job in a process of its own, and records how it ended.

    A failure ends the sweep at once if the sweep varies the stage, since later stages need the earlier ones, or if the
    job was stopped. Jobs that a scheduler runs must fail themselves. Otherwise the other jobs still run.
    """
    hydra = HydraConfig.get()
    code = spawning.launch(sweep_job_arguments())
    metric = OmegaConf.select(cfg, "callbacks.hparams.metric")
    mode = OmegaConf.select(cfg, "selection.mode") if OmegaConf.select(cfg, "selection.metric") == metric else None
    JOBS.append(Job(written(hydra), hydra.runtime.output_dir, code, metric, mode))
    stages_in_order = "stage" in os.environ.get(SWEPT, "").split(",")
    if code and (stages_in_order or not is_launched_here() or code in STOPPED):
        raise SystemExit(code)


def is_launched_here() -> bool:
    """Whether a sweep's jobs run one after another in this process rather than under another launcher."""
    return HydraConfig.get().launcher.get("_target_", "").endswith(".BasicLauncher")


def sweep_job_arguments() -> list[str]:
    """train.py's arguments that repeat this multirun job as a single run in the same folder."""
    hydra = HydraConfig.get()
    return [*hydra_arguments(hydra), *written(hydra), f"hydra.run.dir={quoted(hydra.runtime.output_dir)}"]


def _swept(hydra: DictConfig) -> dict[str, Override]:
    """What a sweep varies, by key: on its command line and in hydra.sweeper.params, which the command line can
    override with a single value."""
    params = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
    given = {o.key_or_group: o for o in parsed([*params, *written(hydra)])}
    configured = {o.key_or_group for o in parsed(params)}
    return {key: o for key, o in given.items() if o.is_sweep_override() or key in configured}
