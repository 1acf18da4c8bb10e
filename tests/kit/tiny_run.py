"""A module, a loader and a trainer as small as they come, for the tests of callbacks."""

import os
from pathlib import Path

import lightning as L
import torch

from components.models.attention.layout import Layout
from components.training.checkpoint_io import AtomicCheckpointIO
from components.training.contract import Reporting


class Tiny(Reporting, L.LightningModule):
    """Two weights fitted by SGD with momentum; `poison`: batch index -> factor of its loss.

    seen: (epoch, batch index, place in the stream) of every batch.
    """

    def __init__(self, poison: dict[int, float] | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        self.poison = poison or {}
        self.seen: list[tuple[int, int, int]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, int(batch["place"])))
        loss = ((self.weight * batch["x"]).sum(-1) - 1).square().mean() * self.poison.get(batch_idx, 1.0)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Validated(Tiny):
    def validation_step(self, batch, batch_idx):
        self.log("val/loss", ((self.weight * batch["x"]).sum(-1) - 1).square().mean())


class Stream:
    """Batch n is a function of n; the place in the stream is saved. A batch holds 5 tokens and 3 fillers."""

    def __init__(self, length: int = 1000) -> None:
        self.length, self.position = length, 0

    def __len__(self):
        return self.length

    def __iter__(self):
        self.position %= self.length  # a new epoch
        while self.position < self.length:
            self.position += 1
            x = torch.tensor([[self.position % 7, self.position % 3]]) / 5
            segments = torch.tensor([[0, 0, 1, 1, 1, -1, -1, -1]])
            layout = Layout(segments, segments, segments)
            yield {"x": x, "layout": layout, "place": torch.tensor(self.position)}

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Send(L.Callback):
    """Sends this process a signal in the middle of the given batches, rank `rank` only."""

    def __init__(self, number: int, *batches: int, rank: int = 0) -> None:
        self.number, self.batches, self.rank = number, batches, rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx in self.batches and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)


def trainer(callbacks, *, folder: Path | None = None, **settings) -> L.Trainer:
    """A silent CPU trainer with atomic checkpoints; it needs `max_steps` or `max_epochs`."""
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
        "plugins": [AtomicCheckpointIO()],
    }
    return L.Trainer(callbacks=callbacks, **(defaults | settings))
