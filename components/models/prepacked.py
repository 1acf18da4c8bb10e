"""Matrices stored for generation, which multiplies a few rows by all of a model's weights at every step.

Such a product takes as long as reading the matrix, if its layout lets a kernel read it in order. For one row on a CPU
that is the transposed matrix, and for several rows oneDNN's blocked layout: MKL copies a matrix into blocks of its own
at every call, which costs more than the product. Packing takes as long as about five steps save.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

PACKED_ROWS = 2  # with fewer rows per step, the transposed matrix is faster


def prepacked(weight: Tensor, dtype: torch.dtype, rows: int) -> Tensor:
    """A copy of a matrix (outputs, inputs) for `product` with about `rows` rows at a time; of a vector, a plain one."""
    weight = weight.detach().to(dtype)
    if weight.dim() != 2:
        return weight
    if rows >= PACKED_ROWS and packs(weight):
        # holds for torch 2.13
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    return weight.t().contiguous().t()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, inputs) · weightᵀ + bias, as F.linear; weight can be `prepacked`. Layouts differ by rounding alone."""
    if weight.is_mkldnn:
        # holds for torch 2.13
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """F.rms_norm in fewer operations than the eleven that torch uses on a CPU in float32: with few rows, starting them
    takes longer than computing. x: (…, D), without a gradient; weight: (D,)."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return F.rms_norm(x, weight.shape, weight, epsilon)
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * torch.addcmul(_scalar(epsilon), size, size, value=1 / x.shape[-1]).rsqrt_() * weight


@cache
def _scalar(number: float) -> Tensor:
    return torch.tensor(number, device="cpu")


def packs(weight: Tensor) -> bool:
    """Whether there is a packed layout for such a matrix: on a CPU, in float32."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
