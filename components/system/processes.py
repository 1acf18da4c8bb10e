"""How many processes there are and what started them: Lightning, torchrun or srun.

Imports nothing heavy: train.py calls it before anything else.
"""

import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

STARTED = time.perf_counter()  # of this process
TRAINS = "components.tasks.fit.fit"  # the task that several processes run together
STARTS_OTHERS = "components.tasks.pipeline.pipeline"  # the task that starts processes itself
RANKS = ("RANK", "LOCAL_RANK")  # processes that Lightning starts have only the second
INTERACTIVE = ("bash", "interactive")  # names of SLURM jobs that are shells


class Launcher(NamedTuple):
    """What started this process. by: torchrun, srun, or "" if it is alone or Lightning starts the others (and counts
    them itself); rank: of this process, among `size` in total; per_node: processes on every machine."""

    by: str
    rank: int
    size: int
    per_node: int


ALONE = Launcher("", 0, 1, 1)


def detect_launcher(environ: Mapping[str, str] = os.environ) -> Launcher:
    """Finds out from the environment what started this process.

    A shell inside a SLURM allocation has the allocation's SLURM_NTASKS but is not one of its tasks. Only srun sets
    SLURM_STEP_NUM_TASKS; without it, a process with SLURM_PROCID is a task unless it is a batch script or an
    interactive job.
    """
    if "TORCHELASTIC_RUN_ID" in environ:
        size = int(environ["WORLD_SIZE"])
        return Launcher("torchrun", int(environ["RANK"]), size, int(environ.get("LOCAL_WORLD_SIZE", size)))
    size = int(environ.get("SLURM_STEP_NUM_TASKS", 1))
    if "SLURM_STEP_NUM_TASKS" not in environ and _is_task(environ):
        size = int(environ.get("SLURM_NTASKS", 1))
    if size > 1:
        nodes = int(environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES", 1)))
        per_node = int(environ.get("SLURM_NTASKS_PER_NODE", size // nodes))
        return Launcher("srun", int(environ["SLURM_PROCID"]), size, per_node)
    return ALONE


def rank(environ: Mapping[str, str] = os.environ) -> int:
    """This process's rank, also in processes that Lightning starts; rank 0 prints and writes."""
    launcher = detect_launcher(environ)
    return launcher.rank or next((int(environ[name]) for name in RANKS if name in environ and not launcher.by), 0)


def arguments_of_rank(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Extra arguments of train.py for every process but the first: its own log file, and no .hydra folder.

    Lightning adds such arguments to the processes that it starts.
    """
    launcher = detect_launcher(environ)
    return [f"hydra.job.name=train_process_{launcher.rank}", "hydra.output_subdir=null"] if launcher.rank else []


def takes_part(task: str, trainer: Any, launcher: Launcher) -> bool:
    """Whether this process runs the task: all processes train; only the first does anything else, and the others leave.

    If the first process raises ValueError (which names the correct command), the others leave too, so that an error is
    printed once. trainer: the config; its devices and num_nodes are filled in if they are "auto".
    """
    if launcher.size == 1 and launcher.by != "torchrun":
        return True
    problem = None
    if task == TRAINS:
        problem = _misfit(trainer, launcher)
    elif task == STARTS_OTHERS:
        problem = _no_nesting("stage=all starts every stage", launcher)
    if problem and launcher.rank == 0:
        raise ValueError(problem)
    return not problem and (task == TRAINS or launcher.rank == 0)


def leaves_sweep(launcher: Launcher) -> bool:
    """True in all but the first of several processes that were started for one sweep; the first raises ValueError."""
    if launcher.size > 1 and launcher.rank == 0:
        raise ValueError(_no_nesting("a sweep starts every job", launcher))
    return launcher.size > 1


def gradus() -> str:
    """How to call the command `gradus` from here: by its path if its environment is not active."""
    script = Path(sys.executable).with_name("gradus")
    return "gradus" if shutil.which("gradus") or not script.exists() else os.path.relpath(script)


def _is_task(environ: Mapping[str, str]) -> bool:
    named = environ.get("SLURM_JOB_NAME") in INTERACTIVE or environ.get("ENVIRONMENT") == "BATCH"
    return "SLURM_PROCID" in environ and not named


def _misfit(trainer: Any, launcher: Launcher) -> str | None:
    """What is wrong with training in these processes, or None; fills in what the config leaves open."""
    nodes = launcher.size // launcher.per_node
    if launcher.by == "srun" and "SLURM_NTASKS_PER_NODE" not in os.environ:
        return (
            f"srun started {launcher.size} processes, but SLURM does not say how many on each machine. Give srun (or "
            f"sbatch) --ntasks-per-node={launcher.per_node} in place of --ntasks"
        )
    if trainer.devices in ("auto", -1) and trainer.num_nodes in (1, nodes):
        trainer.devices, trainer.num_nodes = launcher.per_node, nodes
    requested = _count(trainer.devices) * trainer.num_nodes
    if requested == launcher.size:
        return None
    return (
        f"{launcher.by} started {launcher.size} process{'es' * (launcher.size > 1)}, but trainer.devices="
        f"{trainer.devices} on trainer.num_nodes={trainer.num_nodes} asks for {requested}, so they would not "
        f"train one model together. Add trainer=ddp or trainer=fsdp (which use what {launcher.by} started), or run "
        f"without {launcher.by}: python train.py …"
    )


def _count(devices: Any) -> int:
    if isinstance(devices, int):
        return devices
    return len(devices.split(",")) if isinstance(devices, str) else len(devices)


def _no_nesting(what: str, launcher: Launcher) -> str:
    return (
        f"{what} in its own processes, but {launcher.by} started {launcher.size} of this one. Run without "
        f"{launcher.by}: python train.py … trainer=ddp trainer.devices={launcher.per_node}"
        f"\nor, on several machines, run one stage at a time: {launcher.by} … train.py stage=pretrain trainer=ddp"
    )
