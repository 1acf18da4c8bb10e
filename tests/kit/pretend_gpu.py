"""A GPU that is none: tensors that report the device cuda, are computed on the CPU, and count where the host waits.

Real numbers flow, so whole trainings run as they would on a GPU, by the paths of the code for one. Counted, where the
host would wait for the device:

- operations whose result the host has to know: a number (`.item()`, `bool()`, `torch.equal`), or a shape that depends
  on data (`nonzero`, an index by a boolean mask, `masked_select`, `unique`, `repeat_interleave` by a tensor)
- copies to the CPU, and copies from the CPU that are not `non_blocking`: those of `torch.tensor(…, device=…)` too

Not seen: whether what a `non_blocking` copy reads is pinned, what kernels and libraries do by themselves (allocation,
FlexAttention, collectives), what a compiled or captured graph contains, and the time of anything.
tests/test_gpu.py asks a real GPU, by torch.cuda.set_sync_debug_mode.
"""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from components.models import layer
from components.models.attention import attend

CUDA = torch.device("cuda:0")
ROOT = Path(__file__).resolve().parents[2]
CREATES = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
TO_HOST = ("aten::_to_copy", "aten::copy_")
INDEXES = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")
WAITS = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)  # as torch marks such operations


class OnDevice(Tensor):
    """A tensor that reports the device cuda:0; its numbers are those of `inner`, on the CPU.

    To torch's own code, which cannot be without a driver for cuda, it is on the meta device.
    """

    inner: Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        made = Tensor._make_wrapper_subclass(
            cls, inner.size(), inner.stride(), inner.storage_offset(), dtype=inner.dtype, device="meta"
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.inner!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name
        leaves = tree_leaves((args, kwargs))
        device = kwargs.get("device")
        to_host = name in TO_HOST and not kwargs.get("non_blocking", False) and _is_host(device, args, name)
        if to_host or _waits(name, function, args):
            count(name)
        if not name.startswith(TO_HOST) and any(_on_host(leaf) for leaf in leaves):
            count(f"{name} with a tensor on the host")
        found = function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if name == "aten::_to_copy" and device is not None and torch.device(device).type == "cpu":
            return found
        if name == "aten::copy_":
            return args[0]
        outer = {id(leaf.inner): leaf for leaf in leaves if isinstance(leaf, OnDevice)}
        return tree_map(lambda x: outer.get(id(x), OnDevice(x)) if isinstance(x, Tensor) else x, found)


class PretendGPU(TorchFunctionMode):
    """A context in which tensors can be on cuda. waits: what the host waited for, while `counting`."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.counting = True

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.nn.functional.scaled_dot_product_attention:  # would look for a kernel of CUDA
            return _attention(*args, **kwargs)
        if function in (Tensor.untyped_storage, Tensor.data_ptr) and isinstance(args[0], OnDevice):
            return function(args[0].inner)
        if function in (Tensor.to, Tensor.cuda):
            return self._moved(function, args, kwargs)
        if function is Tensor.new_tensor and isinstance(args[0], OnDevice):
            count("new_tensor")
            return OnDevice(torch.tensor(tree_map(_inner, args[1]), dtype=kwargs.get("dtype", args[0].dtype)))
        if function in (Tensor.tolist, Tensor.numpy) and isinstance(args[0], OnDevice):
            count(function.__name__)
            return function(args[0].inner, *args[1:], **kwargs)
        if function is Tensor.backward:  # of a scalar; with this mode for what Python does there
            ones = torch.ones_like(args[0])
            with self:
                return _engine_run_backward(
                    (args[0],), (ones,), False, False, (), allow_unreachable=True, accumulate_grad=True
                )
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "cuda":
            return function(*args, **kwargs)
        if function in CREATES and not (args and isinstance(args[0], OnDevice)):
            count(function.__name__)
        kwargs["device"] = args[0].device if args and isinstance(args[0], OnDevice) else "cpu"
        if kwargs["device"] != "cpu":
            del kwargs["device"]
            return function(*args, **kwargs)
        return OnDevice(function(*args, **kwargs))

    def _moved(self, function: Any, args: Any, kwargs: Any) -> Tensor:
        """Tensor.to of any form of its arguments."""
        tensor, *rest = args
        like = [other for other in rest if isinstance(other, Tensor)]
        if function is Tensor.cuda:
            device, dtype, blocks, copy = CUDA, None, True, False
        elif like:
            device, dtype, blocks, copy = like[0].device, like[0].dtype, True, False
        else:
            copy = kwargs.pop("copy", False)
            device, dtype, non_blocking, _ = torch._C._nn._parse_to(*rest, **kwargs)
            blocks = not non_blocking
        same = device is None or device.type == tensor.device.type
        if not same and device.type == "cuda":
            if blocks:
                count("a copy from the host")
            return OnDevice(tensor.detach().to(dtype=dtype or tensor.dtype, copy=True))
        if same:
            return Tensor.to(tensor, dtype or tensor.dtype, copy=copy)
        return Tensor.to(tensor, device=device, dtype=dtype or tensor.dtype, non_blocking=not blocks, copy=copy)


class OfTorchItself(TorchDispatchMode):
    """Puts on the device what torch's own code makes for it, such as the 0 of `torch.where(mask, x, 0.0)`."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        made_here = device is not None and device.type == "meta"
        if made_here and not any(isinstance(leaf, Tensor) for leaf in tree_leaves(args)):
            return OnDevice(function(*args, **{**kwargs, "device": torch.device("cpu")}))
        return function(*args, **kwargs)


class NoEvent:
    """An event that has happened: `tensor.to("cpu", non_blocking=True)` is at once what it will be."""

    def __init__(self, device: Any) -> None: ...

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class Pretended(SingleDeviceStrategy):
    """A Lightning strategy for one device, the pretended one. world_size: of as many processes, all like this one."""

    def __init__(self, world_size: int = 1) -> None:
        super().__init__(device="cpu")
        self.world_size = world_size

    @property
    def root_device(self) -> torch.device:
        return CUDA

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        return tensor * self.world_size if reduce_op == "sum" else tensor

    def setup_environment(self) -> None: ...

    def model_to_device(self) -> None:
        on_device(self.model)
        self.model.to(CUDA)


def on_device(module: nn.Module) -> Any:
    """The module with its weights and buffers on the device; shared weights stay shared."""
    moved: dict[Tensor, Tensor] = {}  # with the old ones, whose ids no new one can have meanwhile
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and not isinstance(weight, OnDevice):
                if weight not in moved:
                    moved[weight] = nn.Parameter(OnDevice(weight.detach()), weight.requires_grad)
                part._parameters[name] = moved[weight]  # type: ignore[assignment]
        for name, buffer in part._buffers.items():
            if buffer is not None and not isinstance(buffer, OnDevice):
                part._buffers[name] = moved.setdefault(buffer, OnDevice(buffer))
    return module


_current: list[PretendGPU] = []


@contextlib.contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendGPU]:
    """Inside this context, `cuda` is the pretended device. Attention takes a dense mask, as for narrow heads."""
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device=None: generator())
    monkeypatch.setattr(torch, "Event", NoEvent)
    monkeypatch.setattr(attend, "NARROWEST", 2**20)
    matrix = layer._matrix
    monkeypatch.setattr(layer, "_matrix", lambda weights, *, in_place: matrix(weights, in_place=False))
    gpu = PretendGPU()
    _current.append(gpu)
    try:
        with torch.autograd.set_multithreading_enabled(False), OfTorchItself(), gpu:
            yield gpu
    finally:
        _current.pop()


def count(what: str) -> None:
    """Notes a wait of the host with the lines of the project and of Lightning that led to it."""
    gpu = _current[-1]
    if gpu.counting:
        frames = [f for f in traceback.extract_stack() if "/components/" in f.filename or "/lightning/" in f.filename]
        lines = [f"{Path(f.filename).name}:{f.lineno} {f.line}" for f in frames[-3:]]
        gpu.waits.append(" | ".join([what, *lines]))


def _inner(x: Any) -> Any:
    if isinstance(x, OnDevice):
        return x.inner
    return torch.device("cpu") if isinstance(x, torch.device) else x


def _on_host(x: Any) -> bool:
    return isinstance(x, Tensor) and not isinstance(x, OnDevice) and x.dim() > 0


def _is_host(device: Any, args: Any, name: str) -> bool:
    if name == "aten::copy_":
        return isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice)
    return device is not None and torch.device(device).type == "cpu"


def _waits(name: str, function: Any, args: Any) -> bool:
    if name in INDEXES:
        return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in tree_leaves(args[1]))
    return any(tag in function.tags for tag in WAITS)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q·kᵀ / √D)·v, by operations that a device without kernels of its own has."""
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        scores = scores + attn_mask
    elif attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    return scores.softmax(-1) @ v
