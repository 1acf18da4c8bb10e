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
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import Optimizer

from components.models.shards import DATA, REPLICAS
from components.system.limits import Count
from components.training.checkpoint_io import check
from components.training.replicas import shards_of


class FullySharded(ModelParallelStrategy):
    """Shards parameters, gradients and optimizer state over all processes; a stage shards its own models.

    Lightning's own "auto" uses data parallelism over nodes only, and tensor parallelism inside each.
    replicas: copies of the model, each sharded over an equal number of processes with consecutive ranks (hybrid
    sharding): with one per node, weights are gathered within nodes, and only gradients are reduced between them.
    save_distributed_checkpoint: true: a folder with a file per process; false: one plain file, from which any strategy
    can resume. In that file, a parameter's optimizer state has the parameter's number in the optimizer, as an optimizer
    itself saves it. Lightning numbers parameters in the model's order, which differs if an optimizer has groups: when
    resumed under another strategy, a parameter would get another's momentum.
    """

    def __init__(self, save_distributed_checkpoint: bool = False, replicas: Count = 1) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint)
        self.replicas = replicas

    def setup_environment(self) -> None:
        # holds for Lightning 2.6, like all of this class's uses of its parent's attributes
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()
        if self.replicas > 1:
            assert self.lightning_module is not None
            mesh = new_mesh(self.root_device.type, self.world_size, self.replicas)
            self._device_mesh = self.lightning_module._device_mesh = mesh  # holds for Lightning 2.6

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The full state on the first process, {} on the others; each process's own for a distributed checkpoint."""
        if self._save_distributed_checkpoint:  # holds for Lightning 2.6
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
        """Raises CheckpointError if the file is damaged."""
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            return super().load_checkpoint(path, weights_only)
        check(path)
        optimizers, self.optimizers = self.optimizers, []  # Lightning would load them in the model's order
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


def new_mesh(device_type: str, ranks: int, replicas: int = 1) -> DeviceMesh:
    """A mesh of all ranks, with dimensions (replicas, shards) if the model has replicas. Raises ValueError unless the
    replicas divide the ranks."""
    shards = shards_of(ranks, replicas)
    if replicas == 1:
        return init_device_mesh(device_type, (ranks,), mesh_dim_names=(DATA,))
    return init_device_mesh(device_type, (replicas, shards), mesh_dim_names=(REPLICAS, DATA))


def _renamed(state: dict[str, Any], names: dict[Any, Any]) -> dict[str, Any]:
    """An optimizer's state with its parameters renamed (old → new), those of a group in the order of `names`."""
    order = {new: position for position, new in enumerate(names.values())}
    groups = [
        {**group, "params": sorted((names[old] for old in group["params"]), key=order.__getitem__)}
        for group in state["param_groups"]
    ]
    return {"state": {names[old]: entry for old, entry in state["state"].items()}, "param_groups": groups}
