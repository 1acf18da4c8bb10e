"""The whole way: stages in order, each in a process of its own."""

import logging

from omegaconf import DictConfig

from components import hydra_hooks

log = logging.getLogger(__name__)


def pipeline(cfg: DictConfig) -> None:
    """Runs the stages in order, each in a process of its own; stops at the first failure.

    An entry is a stage, or `stage/label`: the stage again, in a folder of that name, so that one pipeline can hold
    several variants of a stage. cfg.overrides has what is particular to an entry under its name.
    """
    force = [] if cfg.force else ["force=changed"]  # a run of all may replace what its changed settings make stale
    for number, stage in enumerate(cfg.stages, start=1):
        print(f"\n[{number}/{len(cfg.stages)}] {stage}", flush=True)
        arguments = [*hydra_hooks.stage_arguments(cfg, stage), *force, *cfg.overrides.get(stage, [])]
        code = hydra_hooks.launch(arguments)
        if code:
            log.error(
                f"stage={stage} failed with exit status {code}; the stages before it are kept. "
                "Mend it and run the same command: it goes on from there"
            )
            raise SystemExit(code)
