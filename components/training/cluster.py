"""Who started the processes of a training, as the plugin that tells Lightning's trainer."""

import os
from collections.abc import Mapping
from typing import Any

from components.system.processes import start


def environment(environ: Mapping[str, str] = os.environ) -> list[Any]:
    """The trainer's plugin that says who started its processes, where Lightning would guess otherwise.

    It takes any process of a SLURM allocation for one of srun's, and none of an allocation named "interactive".
    """
    from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

    started = start(environ)
    if started.by == "srun":
        return [SLURMEnvironment(auto_requeue=False)]  # the same command resumes from the last checkpoint, unasked
    in_allocation = not started.by and "SLURM_NTASKS" in environ
    return [LightningEnvironment()] if in_allocation else []
