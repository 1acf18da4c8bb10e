"""Frozen projections stored in 8 or 4 bits and read as dense matrices, to save memory; needs bitsandbytes."""

from collections.abc import Collection
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor, nn

from components.system import installing


class Quantized(nn.Module):
    """Replaces a linear layer: each access to `weight` dequantizes its dense matrix, in bfloat16.

    int8: blocks of 256 values to 8 bits by a dynamic map (Dettmers et al. 2022, section 2.2).
    nf4: blocks of 64 values to the 16 quantiles of a normal distribution (Dettmers et al. 2023, section 3).
    Not trained and not saved: the weights are in the artifact that it was loaded from.
    """

    packed: Tensor

    def __init__(self, linear: nn.Linear, kind: Literal["int8", "nf4"]) -> None:
        super().__init__()
        functional = _bitsandbytes()
        weight = linear.weight.detach()
        if kind == "nf4":
            packed, self._state = functional.quantize_4bit(weight.bfloat16(), quant_type="nf4", blocksize=64)
        else:
            packed, self._state = functional.quantize_blockwise(weight.float(), blocksize=256)
        self._dense = functional.dequantize_4bit if kind == "nf4" else functional.dequantize_blockwise
        self.register_buffer("packed", packed, persistent=False)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        self._state.to(self.packed.device)
        return self._dense(self.packed, self._state).bfloat16()


def quantize_(trunk: nn.Module, names: Collection[str], kind: Literal["int8", "nf4"]) -> None:
    """Replaces every linear layer of `trunk` whose last name is in `names` by its Quantized form, in place."""
    for module in list(trunk.modules()):
        for name, child in list(module.named_children()):
            if name in names and isinstance(child, nn.Linear):
                setattr(module, name, Quantized(child, kind))


@torch.no_grad()
def dense_weights(model: nn.Module) -> dict[str, Tensor]:
    """The dense matrices of all quantized projections, by their weights' names."""
    modules = ((name, module) for name, module in model.named_modules() if isinstance(module, Quantized))
    return {f"{name}.weight": module.weight for name, module in modules}


def _bitsandbytes() -> ModuleType:
    try:
        import bitsandbytes.functional as functional
    except ImportError:
        raise ValueError(installing.missing("lora.base", "bitsandbytes", "quant")) from None
    return functional
