"""Sharded training: FSDP2 over all processes of a run."""

from pathlib import Path
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from components.training.checkpoint_io import check


class FullySharded(ModelParallelStrategy):
    """Parameters, gradients and optimizer state in shards, one per process; a stage applies it to its models.

    Lightning's own "auto" puts the data-parallel dimension over nodes only, and tensor parallelism inside each.
    save_distributed_checkpoint: a folder with a file per process; false: one plain file, which any strategy resumes.
    In it a parameter's optimizer state goes by its number in the optimizer, as an optimizer itself writes it. Lightning
    numbers by the order of the model, which is another one wherever an optimizer has groups: resumed under another
    strategy, a parameter would get the momentum of its neighbour.
    """

    def __init__(self, save_distributed_checkpoint: bool = False) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """All of the state on the first process, {} on the others; of a distributed checkpoint every process's own."""
        if self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        assert self.model is not None
        state = get_optimizer_state_dict(self.model, optimizer, options=options)
        if self.global_rank:
            return state
        numbers = {name: number for number, name in enumerate(self._names(optimizer))}
        return _renamed(state, numbers)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Raises CheckpointError for a file that is damaged."""
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            return super().load_checkpoint(path, weights_only)
        check(path)
        optimizers, self.optimizers = self.optimizers, []  # which Lightning would load by the order of the model
        try:
            checkpoint = super().load_checkpoint(path, weights_only)
        finally:
            self.optimizers = optimizers
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        assert self.model is not None
        for optimizer, state in zip(optimizers, checkpoint["optimizer_states"], strict=True):
            named = _renamed(state, dict(enumerate(self._names(optimizer))))
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=named, options=options)
        return checkpoint

    def _names(self, optimizer: Optimizer) -> list[str]:
        """The names of an optimizer's parameters, in its order."""
        assert self.model is not None
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _renamed(state: dict[str, Any], names: dict[Any, Any]) -> dict[str, Any]:
    """An optimizer's state with its parameters called by other names, those of a group in the order of `names`."""
    order = {new: place for place, new in enumerate(names.values())}
    groups = [
        {**group, "params": sorted((names[one] for one in group["params"]), key=order.__getitem__)}
        for group in state["param_groups"]
    ]
    return {"state": {names[one]: of_one for one, of_one in state["state"].items()}, "param_groups": groups}
