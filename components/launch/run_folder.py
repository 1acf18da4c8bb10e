"""The folder of a run: created, locked, checked to be writable, and removed again if nothing was done."""

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from components.launch.choices import NAMELESS
from components.system import locks, processes

REQUEUED = "SLURM_RESTART_COUNT"  # set when SLURM restarts a job, whose earlier processes may still be saving
PATIENCE = 600.0  # seconds that such a job waits for them
NOTES = re.compile(r"\.lock|\.hydra/\w+\.yaml|\w+\.log|checkpoints/inputs\.json")  # what a run writes before working
ADDRESS = re.compile(r"[A-Za-z][\w.+-]+://.*", re.S)  # an fsspec URL, which libraries that write files would follow
_made: dict[int, tuple[Path, Path]] = {}  # by process: the topmost folder that it created for its run, and the run's


def unusable(config: DictConfig) -> list[str]:
    """A line for each path in a config that is a URL such as s3://…, or that libraries would take for a chain of URLs:
    only files and folders of this machine are read and written."""
    values: Any = OmegaConf.to_container(config, resolve=False)
    written = {"run": values.get("run")}
    written |= {f"paths.{name}": value for name, value in (values.get("paths") or {}).items()}
    read = {f"artifacts.{name}": value for name, value in (values.get("artifacts") or {}).items()}
    for key in ("data.path", "data.root", "model.path", "resume"):
        section, _, name = key.partition(".")
        read[key] = (values.get(section) or {}).get(name) if name else values.get(section)
    here = "expected a path on this machine; copy the files from that URL, or mount it"
    addresses = {key: value for key, value in (written | read).items() if ADDRESS.fullmatch(str(value))}
    chains = {key: value for key, value in written.items() if "::" in str(value) and key not in addresses}
    return [f"{key}={value}: {here}" for key, value in addresses.items()] + [
        f"{key}={value}: expected a name without '::', which libraries take for a chain of URLs"
        for key, value in chains.items()
    ]


@contextmanager
def dropped_if_unused() -> Iterator[None]:
    """Removes the folder of a job that ends with a nonzero status before it has done anything: only what this process
    created, and only if nothing but notes about the command is in it."""
    try:
        yield
    except SystemExit as stop:
        if stop.code:
            drop_unused()
        raise


def drop_unused() -> None:
    """Removes the folder of this job if this process created it, and only notes about the command are in it."""
    made, folder = _made.pop(os.getpid(), (None, None))
    if made is None or folder is None or not folder.is_dir():
        return
    if all(NOTES.fullmatch(file.relative_to(folder).as_posix()) for file in folder.rglob("*") if not file.is_dir()):
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another run is in it
            for parent in folder.parents:
                if parent.is_relative_to(made):
                    parent.rmdir()


class Folder(Callback):
    """Creates the folder that Hydra is about to create, since Hydra would fail with a traceback, and locks it before
    anything is written to it. Of several processes of one run, the first locks it for all."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._check_names(config)
        HydraConfig.instance().set_config(config)  # as Hydra does next; the folder's name refers to it
        folder = config.hydra.run.dir
        self._make(folder)
        if processes.rank() == 0:
            try:
                locks.acquire(folder, patience=PATIENCE if REQUEUED in os.environ else 0.0)
            except locks.FolderInUse as error:
                print(error, file=sys.stderr)
                raise SystemExit(1) from None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._check_names(config)
        self._make(config.hydra.sweep.dir)

    def _check_names(self, config: DictConfig) -> None:
        """Ends the process if a config has no name for the run or a path, which would be called None, or one that is
        not a path on this machine."""
        values: Any = OmegaConf.to_container(config, resolve=False)
        names = {"run": values["run"]} | {f"paths.{name}": value for name, value in values["paths"].items()}
        wrong = {key: value for key, value in names.items() if not isinstance(value, str) or value in NAMELESS}
        problems = [f"{key}: expected a name, got {'null' if v is None else repr(v)}" for key, v in wrong.items()]
        if problems := problems + unusable(config):
            print("\n".join(problems), file=sys.stderr)
            raise SystemExit(1)

    def _make(self, folder: str) -> None:
        path = Path(folder).absolute()
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        if missing and processes.rank() == 0:
            _made[os.getpid()] = missing[-1], path
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            print(
                f"{folder} is not writable ({error.strerror}). Choose another folder for the runs: paths.logs=<folder>",
                file=sys.stderr,
            )
            raise SystemExit(1) from None
