"""Stopping on a signal without losing the step."""

import os
import signal
import threading
from types import FrameType

import torch
from lightning import Callback, LightningModule, Trainer

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class GracefulStop(Callback):
    """SIGINT, SIGTERM or SIGUSR1: the running optimizer step is finished, then training ends as if done.

    `Checkpoints` sees the wish to stop in the same step and saves. With several processes the ranks agree
    after each step, so it does not matter which of them got the signal. A second SIGINT (Ctrl-C) stops at
    once. Afterwards `stopped_by` names the signal, and `exit_status` is 128 + its number (130, 143): say how
    to go on, and exit with it.
    """

    def __init__(self) -> None:
        self.stopped_by: signal.Signals | None = None
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    @property
    def exit_status(self) -> int:
        """What a shell reports for a process that this signal ended; 0 after an ordinary end."""
        return 0 if self.stopped_by is None else 128 + self.stopped_by

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stopped_by = self._received = None
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in no other
            self._previous = {number: signal.getsignal(number) for number in SIGNALS}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install(trainer)
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.global_step == self._step:
            return  # in the middle of accumulating gradients: the step is not finished
        self._step = trainer.global_step
        if self._agree(trainer):
            trainer.fit_loop.min_epochs = 0  # a signal outranks a minimal length of training
            trainer.fit_loop.epoch_loop.min_steps = None
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._agree(trainer)  # it may have come during the validation that followed the last step

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def _install(self, trainer: Trainer) -> None:
        """Replaces the handlers; not in `on_fit_start`, because the trainer installs its own right after it.

        Its own end the process with status 0 on SIGTERM, and wait for each other for ever when a whole group
        of processes is signalled.
        """
        self._announces = trainer.is_global_zero
        for number in self._previous:
            signal.signal(number, self._handle)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
        if self._announces:
            # os.write, because a signal may come in the middle of a print
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            os.write(2, f"\n{self._received.name}: stopping after this step{again}\n".encode())

    def _agree(self, trainer: Trainer) -> bool:
        """True, on every rank, if any rank has received a signal; sets `stopped_by`."""
        number = torch.tensor(self._received or 0, device=trainer.strategy.root_device)
        number = int(trainer.strategy.reduce(number, reduce_op="max"))
        if number:
            self.stopped_by = signal.Signals(number)
        return bool(number)
