"""Enough optimizer steps where there are few records."""

from typing import Annotated, Any

from lightning import Callback, LightningModule, Trainer
from pydantic import Field

from components.callbacks.early_stopping import EarlyStopping
from components.data.loading.sampler import batches_per_epoch

Count = Annotated[int, Field(ge=1)]


class SmallData(Callback):
    """Makes at least `steps` optimizer steps of a training that goes by epochs.

    Where the trainer's epochs make fewer, batches are halved, to no fewer than `batch` records a step (None: not at
    all), then epochs are added, and training ends before them after `patience` validations without a new best (None: it
    does not), unless early stopping has a patience of its own. What comes out depends on the number of records and the
    settings alone, so a resumed run finds the same. `note` says what was changed, "" where nothing was.
    """

    def __init__(self, steps: Count = 300, batch: Count | None = None, patience: Count | None = None) -> None:
        self.steps, self.batch, self.patience = steps, batch, patience
        self.note = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """After the data's own setup, before loaders, optimizer and schedule ask for batches and steps."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        epochs = trainer.max_epochs
        if stage != "fit" or epochs is None or epochs < 1:
            return
        records, size, together = len(data.train_examples), data.batch_size, trainer.accumulate_grad_batches
        shared = {"world_size": trainer.world_size, "accumulated": together}
        found = enough(records, size, epochs, steps=self.steps, batch=self.batch, **shared)
        if found == (size, epochs):
            return
        data.batch_size, trainer.fit_loop.max_epochs = found
        stopping = next((one for one in trainer.callbacks if isinstance(one, EarlyStopping)), None)  # type: ignore[attr-defined]
        ends = ""
        if stopping is not None and stopping.patience is None and self.patience is not None and len(data.val_examples):
            stopping.patience = self.patience
            ends = f", fewer once {stopping.metric} has not improved for {self.patience} validations"
        each = trainer.world_size * together
        now, before = (
            f"{count} of {steps_per_epoch(records, one, **shared)} steps of {one * each}"
            for one, count in (found, (size, epochs))
        )
        self.note = (
            f"{records} records: {now.replace(' of ', ' epochs of ', 1)}, not {before}, to make at least {self.steps} "
            f"steps{ends}; trainer.max_epochs={epochs} data.batch_size={size} keeps the stage's own"
        )


def enough(
    records: int,
    size: int,
    epochs: int,
    *,
    steps: int,
    batch: int | None,
    world_size: int = 1,
    accumulated: int = 1,
) -> tuple[int, int]:
    """(batch size of a process, epochs) that make at least `steps` optimizer steps of so many records.

    size, epochs: what the stage has. batch: records of a whole step, below which batches are not halved; None: not
    halved.
    """
    shared = {"world_size": world_size, "accumulated": accumulated}
    least = batch or records * size
    while steps_per_epoch(records, size, **shared) * epochs < steps and size // 2 * world_size * accumulated >= least:
        size //= 2
    return size, max(epochs, -(-steps // steps_per_epoch(records, size, **shared)))


def steps_per_epoch(records: int, size: int, *, world_size: int, accumulated: int) -> int:
    """Optimizer steps; the last of an epoch may have fewer micro-batches."""
    return max(1, -(-batches_per_epoch(records, size, world_size) // accumulated))
