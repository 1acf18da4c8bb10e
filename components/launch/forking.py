"""Another run of train.py, forked from a process that has imported what it needs and has done nothing else.

What a fresh process would find, a forked one finds too, some seconds sooner: arguments, environment, signal handlers as
they are by default, no frame of the process that forked, and at its end the interpreter's own.
"""

import gc
import glob
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from hydra.utils import get_object

from components.system import processes

ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd", "/dev/accel*", "/dev/davinci[0-9]*")
_threads = 0  # of the system, that imports have started: those of allocators and OpenBLAS, which know of forks


class Forked(BaseException):
    """Raised in a forked process, to leave the frames of the one that forked; `train.command_line` takes it."""

    def __init__(self, arguments: Sequence[str]) -> None:
        super().__init__()
        self.arguments, self.environment = list(arguments), dict(os.environ)

    def begin(self) -> None:
        """Makes this process the one that runs train.py with the arguments, as of now."""
        os.environ.clear()
        os.environ.update(self.environment)
        sys.argv[1:] = self.arguments
        processes.STARTED = time.perf_counter()


class Child:
    """A forked process, with what is needed of subprocess.Popen."""

    def __init__(self, arguments: Sequence[str]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._status: int | None = None
        self._pid = os.fork()
        if not self._pid:
            raise Forked(arguments)

    def send_signal(self, number: int) -> None:
        if self._status is None:
            os.kill(self._pid, number)

    def wait(self) -> int:
        """The exit status, −n for signal n."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._status


@contextmanager
def importing() -> Iterator[None]:
    """Within, nothing is collected: imports leave no garbage, and looking for it takes a tenth of their time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        (gc.enable if before else gc.disable)()


def prepare(config: dict[str, Any]) -> bool:
    """Imports all that a stage's composed config names; whether it may then be forked from this process.

    It may be on Linux, in a process that torchrun or srun did not start, on one device, without an accelerator (whose
    driver bears no fork once anybody has asked for it), and while nothing but imports has started a thread.
    """
    global _threads
    trainer = config.get("trainer") or {}
    several = trainer.get("devices") not in (1, "1") or trainer.get("num_nodes") != 1
    if sys.platform != "linux" or several or processes.start() != processes.ALONE or any(map(glob.glob, ACCELERATORS)):
        return False
    if _threads and _started() != _threads:
        return False
    with importing():
        for name in [config["task"], "components.tasks.placement.in_memory", *_targets(config)]:
            with suppress(Exception):  # told where it is built
                get_object(name)
    _threads = _started()
    gc.freeze()  # a collection in the forked process would look at, and so copy, all that was imported
    return threading.active_count() == 1


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield value["_target_"]
        for inner in value.values():
            yield from _targets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _targets(inner)


def _started() -> int:
    return len(os.listdir("/proc/self/task"))
