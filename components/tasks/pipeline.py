"""The full pipeline: stages in order, each in a process of its own."""

import logging
from collections.abc import Sequence

from omegaconf import DictConfig

from components.launch import composing, forking, spawning
from components.launch.sweeps import STOPPED
from components.system import locks
from components.tasks import command_line, learning_summary, plan, staleness

log = logging.getLogger(__name__)


def pipeline(cfg: DictConfig) -> None:
    """Runs the stages in order, each in a process of its own, except those that are up to date; stops at the first
    failure.

    An entry is a stage, or `stage/label`: the stage again, in a folder of that name, so that a pipeline can have
    several variants of a stage. All of them are checked before the first one runs.
    """
    steps = plan.steps_of(cfg)
    plan.check(steps)
    command_line.warn_of_unused_by_all(cfg, {step.entry: step.arguments for step in steps})
    try:
        run_all(steps, [step.entry for step in steps])
    except SystemExit as stop:
        if stop.code == 1:
            learning_summary.show(cfg)
        raise
    if "eval" not in cfg.stages:  # its report says it
        learning_summary.show(cfg)


def run_all(steps: Sequence[plan.Step], entries: Sequence[str]) -> None:
    """Runs steps, the first of `entries`, in order. Ends with the exit status of the first that fails."""
    for number, step in enumerate(steps, start=1):
        print(f"\n[{number}/{len(entries)}] {step.entry}", flush=True)
        code = run(step.arguments)
        if not code:
            continue
        with composing.composed(step.arguments) as cfg:
            again = spawning.same_command(cfg, cfg.paths.export)
        if code in STOPPED:
            log.error(f"stage={step.entry} was stopped (exit status {code}); {again} resumes from there")
        else:
            log.error(
                f"stage={step.entry} failed with exit status {code}; the stages before it are kept. "
                f"Once it is fixed, {again} resumes from there"
            )
        raise SystemExit(code)


def run(arguments: Sequence[str]) -> int:
    """Runs train.py with these arguments and returns its exit status: at once if nothing is left to do, else in a
    process of its own, forked from this one if that is safe."""
    with composing.composed(arguments) as cfg:
        if _is_up_to_date(cfg):
            return 0
        plain = composing.plain(cfg)
    with spawning.overrides_checked():
        return spawning.launch(arguments, forked=forking.prepare(plain))


def _is_up_to_date(cfg: DictConfig) -> bool:
    try:
        locks.check(cfg.paths.stage)
        return staleness.is_up_to_date(cfg)
    except ValueError:  # the stage's own process reports it, in its own log
        return False
