"""Trains one stage, a sweep over stages and settings, or the full pipeline.

python train.py stage=rm model=small
python train.py stage=all
python train.py -m stage=rm model=tiny,small stage.optimizer.lr=1e-4,3e-4

Exit status: 0 success; 1 error; 2 unknown flag, word or choice; 124 trainer.max_time is over; 130, 138, 143 stopped by
SIGINT, SIGUSR1, SIGTERM, with a checkpoint from which the same command resumes. A sweep runs all its jobs and exits
with the status of the first that failed.
"""

import atexit
import gc
import sys

if __name__ == "__main__":
    gc.disable()  # until a task starts: imports and configs leave no garbage, and looking for it takes long
    from components.launch import heap

    heap.tune()  # before other imports, which starting over would repeat

    from components.launch import headline

    headline.show(sys.argv[1:])  # before Hydra is imported, which alone takes longer than printing this line

import hydra
from hydra._internal.hydra import Hydra  # holds for Hydra 1.3
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig

from components.launch import (
    choices,
    composing,
    exit_codes,
    forking,
    headline,
    mistyped,
    quiet_logs,
    run_folder,
    sweeps,
)
from components.launch.overrides import as_typed
from components.system import processes

SINGLE = "hydra.mode=RUN"
composed_mode = Hydra.get_mode


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    """Runs one job. Each job of a sweep gets a process of its own."""
    with run_folder.dropped_if_unused(), exit_codes.exit_codes():
        launcher = processes.detect_launcher()
        if sweeps.is_sweep_job():
            if sweeps.is_launched_here() and processes.leaves_sweep(launcher):
                raise SystemExit(0)
            gc.enable()
            sweeps.run_sweep_job(cfg)
            return
        composing.resolve_interpolations(cfg)
        if not processes.takes_part(cfg.task, cfg.trainer, launcher):
            return
        if processes.rank() == 0:
            stage = HydraConfig.get().runtime.choices["stage"]
            headline.show_once(headline.line_of(stage, cfg.run, cfg.paths.stage))

        # slow imports, here and below: only a job that runs pays for them
        from components.launch import schema

        schema.check(cfg)

        from components.tasks import dispatch

        dispatch.run(cfg, quiet_logs.quiet_lightning)  # called after Lightning's import, which sets up its loggers


def mode(self: Hydra, config_name: str | None, overrides: list[str]) -> RunMode | None:
    """Replaces Hydra.get_mode, which composes the whole config to read hydra.mode, only to compose it again for the
    run. Falls back to it unless the overrides set the mode."""
    modes = [override for override in overrides if override.startswith("hydra.mode=")]
    return RunMode.RUN if modes == [SINGLE] else composed_mode(self, config_name, overrides)


def start() -> None:
    """Runs train.py. A process forked from one of its runs starts over with its own arguments."""
    while True:
        try:
            return run_command()
        except forking.Forked as child:
            forked = child
        forked.begin()


def run_command() -> None:
    """Runs main. Takes paths literally, shows help without a stage, and suggests what was probably meant by words, keys
    and choices that do not exist."""
    if not sys.argv[1:]:
        print(mistyped.overview())
        return
    typed = sys.argv[1:]
    arguments = sys.argv[1:] = as_typed(typed)
    if {"--help", "-h"} & set(arguments) and not any(a.startswith("stage=") for a in arguments):
        sys.argv.append("stage=all")
    if problem := choices.misnamed_choice(arguments):
        print(problem, file=sys.stderr)
        raise SystemExit(1)
    if problem := mistyped.answer(typed, nearest):
        print(problem, file=sys.stderr)
        raise SystemExit(2)
    sys.argv[1:] = choices.without_nulls(sys.argv[1:])
    sys.argv += processes.arguments_of_rank()
    if headline.predicted(typed):
        sys.argv.append(SINGLE)  # what Hydra itself would conclude, since nothing sets another mode
    # holds for Hydra 1.3
    Hydra.get_mode = mode  # type: ignore[method-assign]
    try:
        main()
    except SystemExit as stop:
        error = stop.__context__  # what Hydra has just printed
        if isinstance(error, ConfigCompositionException) and (unknown := getattr(error.__cause__, "full_key", "")):
            print(mistyped.respelled(unknown, typed, nearest), file=sys.stderr)
        raise


def nearest(unknown: str, others: list[str]) -> str:
    """The key closest to an unknown one in the config of the other overrides."""
    from components.launch import schema

    others = as_typed(others) + ([] if any(other.startswith("stage=") for other in others) else ["stage=rm"])
    return schema.nearest_key(unknown, others, composing.compose_config)


if __name__ == "__main__":
    atexit.register(gc.freeze)  # else the interpreter spends two seconds at exit on garbage collection
    start()
