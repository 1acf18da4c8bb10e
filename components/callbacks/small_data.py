"""Enough optimizer steps for small data."""

from lightning import Callback, LightningModule, Trainer

from components.callbacks.early_stopping import EarlyStopping
from components.data.data_contract import data_of
from components.data.loading.sampler import batches_per_epoch
from components.system.limits import Count


class SmallData(Callback):
    """Ensures at least `steps` optimizer steps in a training that is measured in epochs.

    If the trainer's epochs make fewer, batches are halved, to no fewer than `batch` records per step (None: never),
    then epochs are added, and training ends early after `patience` validations without a new best (None: never), unless
    early stopping has a patience of its own. The result depends only on the number of records and the settings, so a
    resumed run gets the same. `note` describes what was changed, "" if nothing.
    """

    def __init__(self, steps: Count = 300, batch: Count | None = None, patience: Count | None = None) -> None:
        self.steps, self.batch, self.patience = steps, batch, patience
        self.note = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """After the data's own setup, before loaders, optimizer and schedule ask for batches and steps."""
        data = data_of(trainer)
        epochs = trainer.max_epochs
        if stage != "fit" or epochs is None or epochs < 1:
            return
        records, size, accumulated = len(data.train_examples), data.batch_size, trainer.accumulate_grad_batches
        shared = {"world_size": trainer.world_size, "accumulated": accumulated}
        changed = enough(records, size, epochs, steps=self.steps, batch=self.batch, **shared)
        if changed == (size, epochs):
            return
        data.batch_size, trainer.fit_loop.max_epochs = changed
        stopping = next((c for c in trainer.callbacks if isinstance(c, EarlyStopping)), None)  # type: ignore[attr-defined]
        ends = ""
        if stopping is not None and stopping.patience is None and self.patience is not None and len(data.val_examples):
            stopping.patience = self.patience
            ends = f", fewer once {stopping.metric} has not improved for {self.patience} validations"
        now, before = (
            f"{steps_per_epoch(records, batch, **shared)} steps of {batch * trainer.world_size * accumulated}"
            for batch in (data.batch_size, size)
        )
        self.note = (
            f"{records} records: {trainer.fit_loop.max_epochs} epochs of {now}, not {epochs} of {before}, to make at "
            f"least {self.steps} steps{ends}; trainer.max_epochs={epochs} data.batch_size={size} keeps the stage's own"
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
    """(batch size per process, epochs) that make at least `steps` optimizer steps from `records` records.

    size, epochs: the stage's own. batch: the fewest records of a whole step, down to which batches are halved; None:
    batches are not halved.
    """
    shared = {"world_size": world_size, "accumulated": accumulated}
    least = batch or records * size
    while steps_per_epoch(records, size, **shared) * epochs < steps and size // 2 * world_size * accumulated >= least:
        size //= 2
    return size, max(epochs, -(-steps // steps_per_epoch(records, size, **shared)))


def steps_per_epoch(records: int, size: int, *, world_size: int, accumulated: int) -> int:
    """Optimizer steps per epoch; the last can have fewer micro-batches."""
    return max(1, -(-batches_per_epoch(records, size, world_size) // accumulated))
