"""Sharded weights (FSDP2): unsharded to be read, changed only in their shards."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


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
