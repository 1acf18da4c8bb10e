"""Weights in shards (FSDP2): held whole to be read, changed only where they are kept."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Holds every sharded part of `module` whole, so that processes may call it unequally often (drawing tokens)."""
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
    """Frees whatever whole copies a forward or `unsharded` left, so that what changes the weights changes the shards.

    A change to a whole copy is lost with it. Copies that were there are gathered again at the end.
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
