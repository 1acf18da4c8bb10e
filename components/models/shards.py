"""Sharded weights (FSDP2): unsharded to be read, changed only in their shards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

DATA, REPLICAS = "data_parallel", "replicas"  # dimensions of a mesh; the first is Lightning's


def shard(model: Any, mesh: DeviceMesh) -> None:
    """Shards a model over the processes of `mesh`, layer by layer; if the mesh has replicas, over those of each."""
    mesh = mesh[REPLICAS, DATA] if REPLICAS in (mesh.mesh_dim_names or ()) else mesh[DATA]
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in ("hidden", "head", "through_head"):
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other tensor unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_whole_(tensor: Tensor, whole: Tensor) -> None:
    """Copies a whole tensor into one that can be sharded: each process copies its part, without communication."""
    if isinstance(tensor, DTensor):
        placed = whole.to(tensor.device)
        whole = distribute_tensor(placed, tensor.device_mesh, tensor.placements, src_data_rank=None).to_local()
    local_part(tensor).copy_(whole)


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Keeps every part of `module` unsharded, so processes can call it different numbers of times (as in sampling)."""
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


@contextmanager
def in_shards(module: nn.Module) -> Iterator[None]:
    """Frees any unsharded copies left by a forward or by `unsharded`, so changes to the weights change the shards.

    A change to an unsharded copy is lost when it is freed. Freed copies are gathered again at the end.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    whole = [part for part in parts if not all(isinstance(p, DTensor) for p in part.parameters())]
    for part in parts:
        part.reshard()
    try:
        yield
    finally:
        for part in whole:
            part.unshard()
