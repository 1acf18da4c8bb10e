"""A summary of a training, printed before its first validation and step."""

from lightning import Callback, LightningModule, Trainer
from torch import nn

from components.callbacks.small_data import SmallData
from components.data.data_contract import DataContract, data_of
from components.loggers.recorder import recorders
from components.training.contract import Reporting


class Header(Callback):
    """Prints the model and its parameters, the device and precision, training and held-out records, batch size and
    steps, whether layers are recomputed to save memory, and where each logger shows curves. model: its name."""

    def __init__(self, model: str) -> None:
        self.model = model
        self._printed = False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer, pl_module)

    def _print(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not self._printed:
            self._printed = True
            data = data_of(trainer)
            lines = {
                "model": f"{self.model}: {parameters(pl_module)}",
                "device": f"{device(trainer)}, precision {trainer.precision}",
                "data": records(data),
                "steps": steps(trainer, data),
                "": "\n".join(c.note for c in trainer.callbacks if isinstance(c, SmallData)),  # type: ignore[attr-defined]
                "memory": pl_module.memory if isinstance(pl_module, Reporting) else "",
                "curves": f"\n{'':<8}".join(filter(None, (recorder.location() for recorder in recorders(trainer)))),
            }
            print("\n".join(f"{name:<8}{text}" for name, text in lines.items() if text), flush=True)


def parameters(module: nn.Module) -> str:
    """The number of parameters, shared ones counted once, and how many of them are trained."""
    unique = {id(parameter): parameter for parameter in module.parameters()}.values()
    trained = sum(parameter.numel() for parameter in unique if parameter.requires_grad)
    return f"{sum(parameter.numel() for parameter in unique):,} parameters, {trained:,} of them trained"


def device(trainer: Trainer) -> str:
    """Where the trainer runs, in words, such as "cuda:0" or "cpu in 2 processes"."""
    root, size = trainer.strategy.root_device, trainer.world_size
    return f"{root.type if size > 1 else root}" + (f" in {size} processes" if size > 1 else "")


def records(data: DataContract) -> str:
    """The training and held-out data, in the units that batches count."""
    unit = f"rows of {data.context} tokens" if data.format == "text" else "records"
    return f"{len(data.train_examples):,} {unit}, {len(data.val_examples) or 'none'} held out"


def steps(trainer: Trainer, data: DataContract) -> str:
    """The optimizer steps of the whole run, the step it resumes after, and the batch of each step."""
    total = trainer.estimated_stepping_batches
    length = f"{trainer.max_epochs} epochs" if total == float("inf") else f"{int(total):,}"
    resumed = f", resumed after {trainer.global_step:,}" if trainer.global_step else ""
    rollout = data.prompts_per_rollout
    each = trainer.world_size * (1 if rollout else trainer.accumulate_grad_batches)
    batch = f"rollouts of {rollout * each} prompts" if rollout else f"batches of {data.batch_size * each}"
    return f"{length}{resumed}, {batch}"
