"""The whole way: stages in order, each in a process of its own."""

import logging

from omegaconf import DictConfig

from components import hydra_hooks
from components.tasks import given

log = logging.getLogger(__name__)


def pipeline(cfg: DictConfig) -> None:
    """Runs the stages in order, each in a process of its own; stops at the first failure.

    An entry is a stage, or `stage/label`: the stage again, in a folder of that name, so that one pipeline can hold
    several variants of a stage. cfg.overrides has what is particular to an entry under its name.
    """
    force = [] if cfg.force else ["force=changed"]  # a run of all may replace what its changed settings make stale
    entries = {
        stage: [*hydra_hooks.stage_arguments(cfg, stage), *force, *cfg.overrides.get(stage, [])] for stage in cfg.stages
    }
    given.say_unused_by_all(cfg, entries)
    for number, (stage, arguments) in enumerate(entries.items(), start=1):
        print(f"\n[{number}/{len(cfg.stages)}] {stage}", flush=True)
        with hydra_hooks.overrides_checked():
            code = hydra_hooks.launch(arguments)
        if code:
            log.error(
                f"stage={stage} failed with exit status {code}; the stages before it are kept. "
                "Fix it and run the same command: it resumes from there"
            )
            raise SystemExit(code)
