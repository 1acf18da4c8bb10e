"""Memory and collectives of a training step, counted from what torch does to tensors that have no contents."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode  # holds for torch 2.13
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode  # holds for torch 2.13

from components.models.heads import CausalLM
from components.models.shards import local_part

WEIGHTS, GRADIENTS, OPTIMIZER = "weights", "gradients", "optimizer"
GATHERED = "gathered"  # whole weights of layers, and buffers of collectives
ACTIVATIONS = "activations"  # all else: also logits, and whole gradients until they are reduced
TWICE = 2  # an all-reduce is a reduce-scatter and an all-gather


class Collectives(NamedTuple):
    """Collectives of one kind: how many, and the bytes that a rank sends in them if they are rings."""

    number: int
    bytes: float


class Traced(NamedTuple):
    """A traced step of one rank. parts: bytes of memory at its peak. collectives: of an optimizer step, by kind."""

    parts: dict[str, int]
    collectives: dict[str, Collectives]

    @property
    def memory(self) -> int:
        """Peak bytes."""
        return sum(self.parts.values())

    @property
    def sent(self) -> float:
        """Bytes sent in an optimizer step."""
        return sum(kind.bytes for kind in self.collectives.values())


@contextmanager
def pretended_ranks(ranks: int) -> Iterator[None]:
    """Makes this process the first of `ranks`, whose collectives return at once and communicate nothing."""
    dist.init_process_group("fake", rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def trace(
    networks: Sequence[nn.Module],
    loss: Callable[[], Tensor],
    new_optimizer: Callable[[], Optimizer],
    *,
    clip: float | None = None,
    accumulation: int = 1,
) -> Traced:
    """Traces an optimizer step of the networks, any but the first, with a CPU's kernels.

    networks: on the meta device, sharded or not. loss: of a micro-batch. new_optimizer: builds that of their weights,
    which are replaced before it is called. clip: the largest norm of the gradient. accumulation: micro-batches of a
    step; the last is traced, and the others can only differ in having no gradients yet.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:  # a batch and its masks are real
        for network in networks:
            network.to_empty(device="cpu")
            if isinstance(network, CausalLM):
                network.tie()
        trained = [p for network in networks for p in network.parameters() if p.requires_grad]
        optimizer = new_optimizer()

        def update() -> None:
            nn.utils.clip_grad_norm_(trained, clip or float("inf"))
            optimizer.step()

        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        update()  # untraced: makes the optimizer's state, and DTensor works out shapes on whole tensors only once
        memory = _StepTrace(fake)
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(lambda p: memory.own(GRADIENTS, [p.grad]))
        memory.own(WEIGHTS, (t for network in networks for t in (*network.parameters(), *network.buffers())))
        memory.own(OPTIMIZER, (s for state in optimizer.state.values() for s in state.values()))
        memory.own(GRADIENTS, (p.grad for p in trained))
        with memory:
            value = loss()
            if accumulation == 1:
                optimizer.zero_grad()  # between the two passes, as Lightning does it
            value.backward()
            repeated = dict(memory.collectives)
            update()
    kinds = {kind: memory.of_step(kind, repeated, accumulation) for kind in memory.collectives}
    return Traced({part: size for part, size in memory.peak.items() if size}, kinds)


class _Storage(NamedTuple):
    alive: "weakref.ref[torch.UntypedStorage]"
    bytes: int
    part: str


class _StepTrace(TorchDispatchMode):
    """Adds up the storages of a FakeTensorMode that are alive, and collectives. now, peak: {part: bytes}; the part is
    ACTIVATIONS unless `own` says otherwise."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake
        self.now, self.peak = Counter[str](), Counter[str]()
        self.collectives: dict[str, Collectives] = {}
        self._storages: dict[int, _Storage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it calls the operation again, on its shards
        result = func(*args, **(kwargs or {}))
        self._count(_tensors(result))
        if func.namespace == "fsdp":  # copies shards into buffers, and buffers into whole weights
            passed = (leaf for leaf in _tensors((args, kwargs)) if self._part(leaf) == ACTIVATIONS)
            self._count(passed, GATHERED)
        elif func.namespace in ("c10d", "_c10d_functional"):
            self._communicate(func, args)
        self._note_peak()
        return result

    def own(self, part: str, values: Iterable[Any]) -> None:
        """Counts the tensors among some values, or this rank's shards of them, as a part of the memory."""
        self._count((local_part(value) for value in values if isinstance(value, Tensor)), part)
        self._note_peak()

    def of_step(self, kind: str, repeated: dict[str, Collectives], times: int) -> Collectives:
        """All collectives of a kind in a step, in which those of a micro-batch are repeated `times` times."""
        count, size = self.collectives[kind]
        again, more = repeated.get(kind, Collectives(0, 0.0))
        return Collectives(count + (times - 1) * again, size + (times - 1) * more)

    def _communicate(self, func: Any, args: Any) -> None:
        name = func.overloadpacket.__name__
        if name == "_allgather_base_":
            self._add("all-gather", args[0], args[0].numel() // args[1].numel())
        elif name == "_reduce_scatter_base_":
            self._add("reduce-scatter", args[1], args[1].numel() // args[0].numel())
        elif name == "allreduce_":
            self._add("all-reduce", args[0][0], dist.ProcessGroup.unbox(args[1]).size(), TWICE)
        elif name == "all_reduce":  # of a norm, whose few bytes do not depend much on the ranks of its group
            self._add("all-reduce", args[0], dist.get_world_size(), TWICE)
        elif name != "wait_tensor":
            raise NotImplementedError(f"{func}: a collective that is not counted")
        for key, storage in list(self._storages.items()):  # FSDP2 resizes those of whole weights, unseen by a mode
            alive = storage.alive()
            if alive is not None and alive.nbytes() != storage.bytes:
                self.now[storage.part] += alive.nbytes() - storage.bytes
                self._storages[key] = storage._replace(bytes=alive.nbytes())

    def _add(self, kind: str, whole: Tensor, ranks: int, passes: int = 1) -> None:
        count, size = self.collectives.get(kind, Collectives(0, 0.0))
        sent = passes * (ranks - 1) / ranks * whole.numel() * whole.element_size()
        self.collectives[kind] = Collectives(count + 1, size + sent)

    def _count(self, tensors: Iterable[Tensor], part: str | None = None) -> None:
        for tensor in tensors:
            if not isinstance(tensor, FakeTensor) or tensor.fake_mode is not self.fake:
                continue
            storage = tensor.untyped_storage()
            key, size = id(storage), storage.nbytes()
            before = self._storages.get(key)
            if before is None:
                before = _Storage(weakref.ref(storage, partial(self._free, key)), size, part or ACTIVATIONS)
            else:
                self.now[before.part] -= before.bytes
            self._storages[key] = before._replace(bytes=size, part=part or before.part)
            self.now[part or before.part] += size

    def _part(self, tensor: Tensor) -> str | None:
        storage = self._storages.get(id(tensor.untyped_storage())) if isinstance(tensor, FakeTensor) else None
        return storage.part if storage else None

    def _free(self, key: int, _: Any) -> None:
        storage = self._storages.pop(key)
        self.now[storage.part] -= storage.bytes

    def _note_peak(self) -> None:
        if self.now.total() >= self.peak.total():
            self.peak = Counter(self.now)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
