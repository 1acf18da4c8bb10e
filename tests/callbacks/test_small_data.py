"""Small data makes enough optimizer steps: by smaller batches first, then by more epochs."""

import pytest
import torch
from torch.utils.data import DataLoader

from components.callbacks.early_stopping import EarlyStopping
from components.callbacks.small_data import SmallData, enough
from components.data.data_contract import DataContract
from tests.kit.tiny_run import Tiny, trainer


@pytest.mark.parametrize(
    ("records", "epochs", "size", "expected"),
    [
        (342, 3, 64, (16, 14)),  # 22 batches of 16, and 14 · 22 = 308 is the first multiple above 300
        (2000, 3, 64, (16, 3)),  # 63 batches of 32 make 189 steps, 125 of 16 make 375
        (4000, 3, 64, (32, 3)),
        (6400, 3, 64, (64, 3)),  # just 300 as they are
        (342, 400, 64, (64, 400)),
        (10, 3, 64, (16, 300)),
        (342, 3, 8, (8, 7)),  # smaller already: 43 batches
        (342, 3, 20, (20, 17)),  # half of it is too few
    ],
)
def test_batches_are_halved_down_to_the_smallest_and_then_epochs_are_added(records, epochs, size, expected):
    assert enough(records, size, epochs, steps=300, batch=16) == expected


def test_a_batch_size_that_was_set_is_kept():
    assert enough(342, 64, 3, steps=300, batch=None) == (64, 50)  # 6 batches


def test_the_smallest_batch_counts_all_processes_and_micro_batches_of_a_step():
    assert enough(342, 16, 3, steps=300, batch=16, world_size=2, accumulated=2) == (4, 14)  # 43 of each process


class Records(DataContract):
    """10 records in batches of batch_size."""

    format = "chat"

    def __init__(self, held_out: int = 1) -> None:
        super().__init__()
        self.train_examples, self.val_examples = [torch.ones(2)] * 10, [torch.ones(2)] * held_out
        self.batch_size = 8

    def train_dataloader(self):
        return DataLoader([{"x": one[None], "place": 0} for one in self.train_examples], self.batch_size)


class Counted(Tiny):
    def training_step(self, batch, batch_idx):
        return (self.weight * batch["x"]).sum()


def test_the_trainer_makes_the_number_of_steps_in_its_schedule():
    few, stopping = SmallData(steps=20, batch=2, patience=3), EarlyStopping()
    fitter = trainer([few, stopping], max_epochs=2)
    fitter.fit(Counted(), datamodule=Records())
    assert fitter.global_step == fitter.estimated_stepping_batches == 20  # 4 epochs of 5 batches of 2
    assert fitter.max_epochs == 4 and fitter.datamodule.batch_size == 2
    assert few.note.startswith("10 records: 4 epochs of 5 steps of 2, not 2 of 2 steps of 8, to make at least 20 steps")
    assert "trainer.max_epochs=2 data.batch_size=8 keeps" in few.note
    assert stopping.patience == 3


def test_with_enough_records_the_stages_settings_are_kept():
    few, stopping = SmallData(steps=4, batch=2, patience=3), EarlyStopping()
    fitter = trainer([few, stopping], max_epochs=2)
    fitter.fit(Counted(), datamodule=Records())
    assert fitter.global_step == 4 and few.note == "" and stopping.patience is None


def test_without_held_out_data_there_is_no_patience():
    few, stopping = SmallData(steps=20, batch=2, patience=3), EarlyStopping()
    trainer([few, stopping], max_epochs=2).fit(Counted(), datamodule=Records(held_out=0))
    assert stopping.patience is None and "improved" not in few.note


def test_a_patience_that_was_set_is_kept():
    stopping = EarlyStopping(patience=9)
    trainer([SmallData(steps=20, patience=3), stopping], max_epochs=2).fit(Counted(), datamodule=Records())
    assert stopping.patience == 9
