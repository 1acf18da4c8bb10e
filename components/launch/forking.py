"""Runs train.py again in a fork of a process that has imported what the run needs and has done nothing else.

A forked process starts from the same state as a fresh one, some seconds sooner: its own arguments and environment,
default signal handlers, no stack frame of the parent process, and the interpreter's regular exit.
"""

import gc
import glob
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from hydra.utils import get_object

from components.system import processes

ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd", "/dev/accel*", "/dev/davinci[0-9]*")
_threads = 0  # OS threads that imports have started and no fork has stopped: allocators and OpenBLAS handle forks


class Forked(BaseException):
    """Raised in a forked process to unwind the parent's stack frames; `train.start` catches it."""

    def __init__(self, arguments: Sequence[str]) -> None:
        super().__init__()
        self.arguments, self.environment = list(arguments), dict(os.environ)

    def begin(self) -> None:
        """Turns this process into one that has just started train.py with the arguments."""
        os.environ.clear()
        os.environ.update(self.environment)
        sys.argv[1:] = self.arguments
        processes.STARTED = time.perf_counter()


class Child:
    """A forked process, with the methods of subprocess.Popen that its parent needs."""

    def __init__(self, arguments: Sequence[str]) -> None:
        global _threads
        sys.stdout.flush()
        sys.stderr.flush()
        self._status: int | None = None
        self._pid = os.fork()
        if not self._pid:
            raise Forked(arguments)
        _threads = _num_threads()  # OpenBLAS has stopped its own, and starts them again when they are needed

    def send_signal(self, number: int) -> None:
        if self._status is None:
            os.kill(self._pid, number)

    def wait(self) -> int:
        """The exit status, −n for signal n."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._status


def prepare(config: dict[str, Any]) -> bool:
    """Imports everything that a stage's composed config names. Returns whether the stage can run in a fork.

    It can on Linux, in a process that torchrun or srun did not start, on one device, without an accelerator (whose
    driver does not survive a fork once it has been queried), and if only imports have started threads.
    """
    global _threads
    trainer = config.get("trainer") or {}
    several = trainer.get("devices") not in (1, "1") or trainer.get("num_nodes") != 1
    if (
        sys.platform != "linux"
        or several
        or processes.detect_launcher() != processes.ALONE
        or any(map(glob.glob, ACCELERATORS))
    ):
        return False
    if _threads and _num_threads() != _threads:
        return False
    for name in [config["task"], "components.tasks.placement.in_memory", *_targets(config)]:
        with suppress(Exception):  # reported when it is built
            get_object(name)
    _threads = _num_threads()
    gc.freeze()  # a collection in the forked process would touch, and so copy, everything that was imported
    return threading.active_count() == 1


def has_one_thread() -> bool:
    """Whether this process has a single OS thread, so that a fork of it is whole; False where that is unknown."""
    return sys.platform == "linux" and _num_threads() == 1


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield value["_target_"]
        for inner in value.values():
            yield from _targets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _targets(inner)


def _num_threads() -> int:
    return len(os.listdir("/proc/self/task"))
