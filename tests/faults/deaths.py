"""Ways for a training process to die, given to a real `python train.py` through its config.

Every death is SIGKILL to the whole process group: nothing can be caught, flushed or tidied up afterwards.
"""

import io
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from hydra.experimental.callback import Callback as HydraCallback
from lightning import Callback, Trainer

TRACED = ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir")  # of os; pathlib and shutil call them too
EVENTS = ("batch", "backward", "step", "end", "save", "validation")


def die() -> NoReturn:
    os.killpg(0, signal.SIGKILL)
    raise AssertionError("a killed process goes on")


def my_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


class InTraining(HydraCallback):
    """Gives every training of this process a Death. A callback of the config would be a setting of the run, and a run
    is not resumed with other settings."""

    def __init__(self, **moment: Any) -> None:
        self.moment = moment

    def on_job_start(self, config: Any, **_: Any) -> None:
        fit, death = Trainer.fit, Death(**self.moment)

        def mortal(trainer: Trainer, *args: Any, **kwargs: Any) -> None:
            trainer.callbacks.insert(0, death)
            fit(trainer, *args, **kwargs)

        Trainer.fit = mortal


class Death(Callback):
    """Dies `seconds` after event number `count` (from 1) of this process, on process `rank` of a group.

    batch: a batch was fetched (on-policy: its rollout collected); backward: the loss is there; step: the gradients are
    there; end: the weights have moved; save: a checkpoint begins to be written; validation: it begins.
    """

    def __init__(self, event: str, count: int, seconds: float = 0.0, rank: int = 0) -> None:
        assert event in EVENTS, event
        self.event, self.left, self.seconds, self.rank = event, count, seconds, rank

    def _happens(self, event: str) -> None:
        if event != self.event or my_rank() != self.rank:
            return
        self.left -= 1
        if self.left == 0:
            if self.seconds:
                threading.Timer(self.seconds, die).start()
            else:
                die()

    def on_train_batch_start(self, *_: Any) -> None:
        self._happens("batch")

    def on_before_backward(self, *_: Any) -> None:
        self._happens("backward")

    def on_before_optimizer_step(self, *_: Any) -> None:
        self._happens("step")

    def on_train_batch_end(self, *_: Any) -> None:
        self._happens("end")

    def on_save_checkpoint(self, *_: Any) -> None:
        self._happens("save")

    def on_validation_start(self, *_: Any) -> None:
        self._happens("validation")


class AtFile(HydraCallback):
    """Dies at operation number `count` (from 1) on a file below `folder`, before it or `after` it; 0: never.

    An operation is one of TRACED or the opening of a file for writing: after that one the file is there, and empty.
    journal: where every operation is written down, one a line.
    """

    def __init__(self, folder: str, count: int, after: bool = False, rank: int = 0, journal: str = "") -> None:
        self.folder, self.left, self.after, self.rank = os.path.abspath(folder), count, after, rank
        self.journal = journal and os.path.abspath(journal)

    def on_job_start(self, config: Any, **_: Any) -> None:
        if my_rank() != self.rank:
            return
        for name in TRACED:
            setattr(os, name, self._traced(name, getattr(os, name), lambda *a, **k: True))
        io.open = self._traced("open", io.open, lambda file, mode="r", *a, **k: mode[0] in "wxa")  # Path.open's

    def _traced(self, name: str, real: Callable, counts: Callable[..., bool]) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not (counts(*args, **kwargs) and self._is_ours(args[0], kwargs)):
                return real(*args, **kwargs)
            self.left -= 1
            if self.journal:
                descriptor = os.open(self.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.write(descriptor, f"{name} {args[0]}\n".encode())
                os.close(descriptor)
            if self.left == 0 and not self.after:
                die()
            result = real(*args, **kwargs)
            if self.left == 0:
                die()
            return result

        return call

    def _is_ours(self, target: Any, kwargs: dict[str, Any]) -> bool:
        descriptor = target if isinstance(target, int) else kwargs.get("dir_fd")
        path = "" if isinstance(target, int) else os.fsdecode(target)
        if descriptor is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), path)
        path = os.path.abspath(path)
        return path.startswith(self.folder) and ".tfevents." not in path and not path.endswith(".log")
