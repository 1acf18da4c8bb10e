"""When enough time has passed for another checkpoint, agreed on by all processes without asking at every step."""

import time

from lightning import Trainer


class SaveClock:
    """Due about every `minutes`; never if that is None.

    The first process's clock counts. Asking it at every step would make a GPU wait for each, so the processes ask it at
    planned steps only: by the duration of the steps so far, the one at which it will be due, but no further ahead than
    steps have been timed.
    """

    def __init__(self, minutes: float | None) -> None:
        self.seconds = None if minutes is None else 60 * minutes
        self._began = self._saved = 0.0  # by time.monotonic
        self._first = self._planned = 0  # steps

    def start(self, step: int) -> None:
        """Training starts, or continues, after this step."""
        self._began = self._saved = time.monotonic()
        self._first, self._planned = step, step + 1

    def saved(self) -> None:
        """A checkpoint has just been written."""
        self._saved = time.monotonic()

    def is_due(self, trainer: Trainer) -> bool:
        """Whether to save after this step. Every process asks once a step."""
        step = trainer.global_step
        if self.seconds is None or step < self._planned:
            return False
        now, done = time.monotonic(), step - self._first
        left = self._saved + self.seconds - now
        ahead = (left if left > 0 else self.seconds) / max((now - self._began) / done, 1e-9)
        due, self._planned = trainer.strategy.broadcast((left <= 0, step + max(1, min(round(ahead), done))))
        return due
