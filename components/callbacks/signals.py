"""Stops a run on a signal, or when the time is up, without losing the step and without further work."""

import os
import re
import signal
import threading
import time
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import _TunerExitException  # holds for Lightning 2.6

from components.callbacks.checkpoints import Checkpoints, between_steps, validates_next
from components.functional.host_copy import HostCopy
from components.system import processes

OUT_OF_TIME = 124  # the exit status that timeout(1) gives
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class GracefulStop(Callback):
    """On SIGINT, SIGTERM, SIGUSR1 or a deadline, finishes and saves the current optimizer step, and `fit` returns.

    Nothing else is computed: no validation, and no callback's or module's hook at the end of an epoch, of training or
    of the fit. A validation that is due, or running, is left to the resumed run (see `Checkpoints`). List this callback
    first, so it exits before the others' hooks. A signal after training, when everything is saved, ends the process at
    once, since a resumed run repeats what follows.

    With several processes, the ranks agree after each step, so any of them can receive the signal; on GPUs, which would
    have to be waited for, they learn after the next step what they agreed on. A second SIGINT (Ctrl-C) stops at once.
    deadline: by time.monotonic. Afterwards, `reason` is the signal or setting that stopped the run ("" after a normal
    end), and `exit_status` is 128 + the signal's number (130, 138, 143) or OUT_OF_TIME: the caller should print how to
    resume, and exit with it.
    """

    def __init__(self) -> None:
        self.deadline = float("inf")
        self.stopped_by: signal.Signals | None = None
        self.out_of_time = False
        self._received: signal.Signals | None = None
        self._agreed: HostCopy | None = None  # after the latest step, of several processes
        self._previous: dict[signal.Signals, Any] = {}
        self._stepped = False
        self._trained = False  # and saved

    @property
    def exit_status(self) -> int:
        """The status that a shell reports for a process ended by this signal; 0 after a normal end.

        Of several processes, only the first reports it. The others exit with 0, since the launcher takes any other
        status for a crash and kills the processes that are still running (Lightning: the first one itself).
        """
        if processes.rank():
            return 0
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        return OUT_OF_TIME if self.out_of_time else 0

    @property
    def reason(self) -> str:
        if self.stopped_by is not None:
            return self.stopped_by.name
        return "trainer.max_time" if self.out_of_time else ""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stopped_by = self._received = self._agreed = None
        self.out_of_time = self._stepped = self._trained = False
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            self._previous = {number: signal.getsignal(number) for number in SIGNALS}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install(trainer)
        self._step = trainer.global_step
        self._agree(trainer)  # on signals during the sanity check
        self._exit_if_stopped()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.global_step == self._step:
            return  # gradients are still being accumulated
        self._step, self._stepped = trainer.global_step, True
        last = trainer.is_last_batch or trainer.global_step == trainer.max_steps
        if self._agree(trainer, behind=trainer.strategy.root_device.type != "cpu" and not last):
            for checkpoints in _checkpoints(trainer):
                checkpoints.save_and_leave(validates_next(trainer))
            _end_training(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._exit_if_stopped()

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.sanity_checking or between_steps(trainer):
            return
        if self._agree(trainer):
            for checkpoints in _checkpoints(trainer):
                checkpoints.save_unvalidated(trainer)
            self._exit_if_stopped()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and self._agree(trainer):
            _end_training(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._exit_if_stopped()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Also the first hook of a run resumed from its last step."""
        self._agree(trainer)
        self._exit_if_stopped()
        self._trained = True
        self._install(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def _install(self, trainer: Trainer) -> None:
        """Replaces the handlers; not in `on_fit_start`, because the trainer installs its own right after it.

        The trainer's handlers end the process with status 0 on SIGTERM, and wait for each other forever if a whole
        group of processes is signaled.
        """
        self._announces = trainer.is_global_zero
        for number in self._previous:
            signal.signal(number, self._handle)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _exit_if_stopped(self) -> None:
        """Ends `fit` here, as Lightning's tuners do: loggers are closed, and no hook but teardown follows."""
        if self.reason:
            raise _TunerExitException

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._trained:
            again = "the same command, without force=true or resume=never, repeats what follows training"
            os.write(2, f"\n{signal.Signals(number).name}: stopping; {again}\n".encode())
            raise SystemExit(128 + number)
        if number == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
        if self._announces:
            # os.write, because a signal can arrive in the middle of a print
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            os.write(2, f"\n{self._received.name}: stopping after this step{again}\n".encode())

    def _agree(self, trainer: Trainer, *, behind: bool = False) -> bool:
        """True, on every rank, if any rank has received a signal or is past the deadline; records which. Past the
        deadline, one step still runs, so a run that is resumed again and again makes progress.

        behind: of several processes, returns what they agreed on at the previous call, without waiting for this one's.
        """
        late = self._stepped and time.monotonic() > self.deadline
        number: int = self._received or 0
        if trainer.world_size > 1:
            own = [torch.full((), int(x), device=trainer.strategy.root_device) for x in (number, late)]
            latest = HostCopy(trainer.strategy.reduce(torch.stack(own), reduce_op="max"))
            agreed, self._agreed = (self._agreed if behind else latest), latest
            number, late = (0, False) if agreed is None else agreed.read().tolist()
        if number:
            self.stopped_by = signal.Signals(int(number))
        self.out_of_time = bool(late)
        return bool(number or late)


def _end_training(trainer: Trainer) -> None:
    """Ends the loops here: a signal overrides a minimum length of training."""
    trainer.fit_loop.min_epochs = 0
    trainer.fit_loop.epoch_loop.min_steps = None
    trainer.should_stop = True


def _checkpoints(trainer: Trainer) -> list[Checkpoints]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoints)]


def seconds_of(max_time: str | dict[str, float] | None) -> float:
    """A limit as Lightning writes it, "DD:HH:MM:SS" or {"hours": 2}; infinite for None. Raises ValueError."""
    if max_time is None:
        return float("inf")
    try:
        if isinstance(max_time, str):
            match = re.fullmatch(r"(\d+):(\d\d):(\d\d):(\d\d)", max_time)
            numbers = map(int, match.groups()) if match else ()
            parts: dict[str, float] = dict(zip(("days", "hours", "minutes", "seconds"), numbers))
        else:
            parts = dict(max_time)
        limit = timedelta(**parts).total_seconds()
    except (TypeError, OverflowError):
        limit = 0.0
    if limit <= 0:
        raise ValueError(
            f"trainer.max_time: expected days:hours:minutes:seconds such as 00:11:30:00, or {{hours: 2}}, "
            f"got {max_time!r}"
        )
    return limit
