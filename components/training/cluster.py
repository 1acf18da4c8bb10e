"""The trainer's plugin for the launcher that started a training's processes."""

import os
from collections.abc import Mapping
from typing import Any

from components.system.processes import detect_launcher


def environment(environ: Mapping[str, str] = os.environ) -> list[Any]:
    """The plugin for the launcher that started the trainer's processes, if Lightning would detect the wrong one.

    Lightning assumes that srun started any process in a SLURM allocation, unless the allocation is named "interactive".
    """
    from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

    launcher = detect_launcher(environ)
    if launcher.by == "srun":
        return [SLURMEnvironment(auto_requeue=False)]  # the same command already resumes from the last checkpoint
    in_allocation = not launcher.by and "SLURM_NTASKS" in environ
    return [LightningEnvironment()] if in_allocation else []
