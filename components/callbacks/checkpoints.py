"""When checkpoints are written, how many are kept, and which one to go on from."""

import warnings
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from components.callbacks.checkpoint_io import CheckpointError, check


class Checkpoints(Checkpoint):
    """Saves every `every_n_steps` optimizer steps and always where training ends; keeps the newest `keep`.

    Being a `Checkpoint`, it runs after all other callbacks: a guard's error comes before the save, and a wish
    to stop is seen in the same step. It saves inside the last step rather than after it: by then the loops
    have counted an epoch that may not be over, and a run resumed with more steps would go on from the wrong
    batch. Whatever must be in the file (a moving average, a counter) has to be updated before the hook
    `on_train_batch_end` of the LightningModule, which runs later.
    """

    def __init__(self, folder: str | Path, every_n_steps: int = 1000, keep: int = 2) -> None:
        """Raises ValueError for a count below 1."""
        if every_n_steps < 1 or keep < 1:
            raise ValueError(
                f"Checkpoints: expected every_n_steps and keep of at least 1, got {every_n_steps} and {keep}"
            )
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.last_path: Path | None = None  # newest file written or resumed from

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        path = self._path(trainer.global_step)
        self.last_path = path if path.is_file() else None
        if trainer.is_global_zero:
            self._set_aside(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        step = trainer.global_step
        if step == self._step:
            return  # gradients are still being accumulated, and they are not part of a checkpoint
        self._step = step
        if step % self.every_n_steps == 0 or step == trainer.max_steps or trainer.should_stop:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.last_path != self._path(trainer.global_step):
            self._save(trainer)  # the end of the last epoch, or one that a validation decided

    def _path(self, step: int) -> Path:
        return self.folder / f"step={step:08d}.ckpt"

    def _save(self, trainer: Trainer) -> None:
        path = self._path(trainer.global_step)
        trainer.save_checkpoint(path)  # on every rank: sharded strategies gather in it
        self.last_path = path
        if trainer.is_global_zero:
            for old in _newest_first(self.folder)[self.keep :]:
                old.unlink()

    def _set_aside(self, step: int) -> None:
        """Renames files ahead of the step this run begins at: `latest` would take them for this run's own."""
        for leftover in self.folder.glob("step=*.ckpt.tmp"):
            leftover.unlink()
        for path in _newest_first(self.folder):
            if _step_of(path) > step:
                aside = path.with_name(path.name + ".old")
                path.replace(aside)
                warnings.warn(f"{path} is ahead of step {step}, where this run begins; now {aside.name}", stacklevel=2)


def latest(folder: str | Path) -> Path | None:
    """The newest whole checkpoint, or None where there is none; a damaged one is skipped with a warning.

    Raises CheckpointError if there are checkpoints and every one is damaged: starting over is a decision.
    """
    paths = _newest_first(Path(folder))
    for path in paths:
        try:
            check(path)
            return path
        except CheckpointError as error:
            warnings.warn(f"skipped: {error}", stacklevel=2)
    if paths:
        raise CheckpointError(
            f"all {len(paths)} checkpoints in {folder} are damaged. To begin anew, delete that folder and start again"
        )
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step=*.ckpt"), key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step="))
