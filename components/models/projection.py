"""Products with a layer's matrices, and what they keep for the backward pass.

torch keeps the input of a product and all that this input was computed from: for a layer's two norms and its SwiGLU,
half of a layer's activations. On a CPU these are recomputed from what they were computed from, and their gradients take
fewer passes over memory than torch's composite ones, so it costs no time (two cores with avx2, 4,096 tokens of width
256: norm and product .95 ×, SwiGLU and product 1.00 ×). A compiler and the fused kernels of CUDA do this themselves.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from components.functional.shapes import at_least_float32
from components.models.prepacked import product

Gradients = tuple[Tensor | None, ...]


class Projection(NamedTuple):
    """A matrix (outputs, inputs) and what is added to its product; low_rank: A (R, inputs) and B (outputs, R) of
    adapters, with dropout on A's input. prepacked: the matrix is in the layout that `prepacked` chose."""

    weight: Tensor
    bias: Tensor | None = None
    low_rank: tuple[Tensor, Tensor] | None = None
    dropout: float = 0.0
    prepacked: bool = False


def project(x: Tensor, projection: Projection) -> Tensor:
    """The product of x with the matrix, plus bias and adapters: (…, inputs) → (…, outputs)."""
    multiply = product if projection.prepacked else F.linear
    out = multiply(x, projection.weight, projection.bias)
    if projection.low_rank is None:
        return out
    down, up = (matrix.to(x.dtype) for matrix in projection.low_rank)
    return out + F.linear(F.linear(F.dropout(x, projection.dropout), down), up)


def project_normed(x: Tensor, scale: Tensor, eps: float, projection: Projection) -> Tensor:
    """The projection of RMSNorm(x), (…, D) → (…, outputs), where `recomputes`; scale: (D,), the norm's weight."""
    low_rank = projection.low_rank or (None, None)
    return _Normed.apply(x, scale, eps, projection.weight, projection.bias, *low_rank)  # type: ignore[no-untyped-call]


def project_gated(gate_up: Tensor, projection: Projection) -> Tensor:
    """The projection of silu(gate) · up (SwiGLU), (…, 2 · inputs) → (…, outputs); gate_up: the two side by side."""
    if recomputes(gate_up, projection):
        low_rank = projection.low_rank or (None, None)
        return _Gated.apply(gate_up, projection.weight, projection.bias, *low_rank)  # type: ignore[no-untyped-call]
    gate, up = gate_up.chunk(2, dim=-1)
    return project(F.silu(gate) * up, projection)


def recomputes(x: Tensor, projection: Projection) -> bool:
    """Whether the input of a projection is recomputed from x in the backward pass."""
    usual = x.device.type == "cpu" and not torch.compiler.is_compiling()
    return usual and torch.is_grad_enabled() and not (projection.dropout or projection.prepacked)


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        eps: float,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor | None,
        up: Tensor | None,
    ) -> Tensor:
        normed = F.rms_norm(x, scale.shape, scale.to(x.dtype), eps)
        out, narrow = _product(normed.to(weight.dtype), weight, bias, down, up)
        ctx.save_for_backward(x, scale, weight, down, up, narrow)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        """With n = x / √(mean x² + eps), y = n · scale and h the gradient with respect to y: d scale = Σ h · n, and
        d x = (h · scale − n · mean(h · scale · n)) / √(mean x² + eps)."""
        x, scale, weight, down, up, narrow = ctx.saved_tensors
        of_x, of_scale = ctx.needs_input_grad[:2]
        grad = grad.flatten(0, -2)
        rows = at_least_float32(x.flatten(0, -2))
        size = rows.shape[1]
        factor = (torch.linalg.vecdot(rows, rows) / size + ctx.eps).rsqrt_()[:, None]
        unit, scale_wide = rows * factor, scale.to(rows.dtype)
        normed = (unit * scale_wide).to(grad.dtype)
        matrices = _of_matrices(ctx.needs_input_grad[3:], grad, normed, down, up, narrow)
        del normed
        if not (of_x or of_scale):
            return None, None, None, *matrices
        slope = _of_input(grad, weight, down, up).to(rows.dtype)
        product = slope * unit
        shared = (product @ scale_wide)[:, None] / -size
        found_scale = product.sum(0).to(scale.dtype) if of_scale else None
        found_x = slope.mul_(scale_wide).addcmul_(unit, shared).mul_(factor).to(x.dtype).view_as(x)
        return found_x, found_scale, None, *matrices


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gate_up: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor | None, up: Tensor | None
    ) -> Tensor:
        gate, value = gate_up.chunk(2, dim=-1)
        out, narrow = _product(F.silu(gate).mul_(value), weight, bias, down, up)
        ctx.save_for_backward(gate_up, weight, down, up, narrow)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        gate_up, weight, down, up, narrow = ctx.saved_tensors
        grad = grad.flatten(0, -2)
        gate, value = gate_up.flatten(0, -2).chunk(2, dim=-1)
        slope = _of_input(grad, weight, down, up).to(gate.dtype)
        gated = F.silu(gate)
        found = torch.empty_like(gate_up, memory_format=torch.contiguous_format)
        of_gate, of_value = found.flatten(0, -2).chunk(2, dim=-1)
        torch.mul(slope, gated, out=of_value)
        inner = gated.mul_(value).to(grad.dtype)
        matrices = _of_matrices(ctx.needs_input_grad[1:], grad, inner, down, up, narrow)
        torch.ops.aten.silu_backward.grad_input(slope.mul_(value), gate, grad_input=of_gate)  # holds for torch 2.13
        return found, *matrices


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor | None, up: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The projection of x, and A·x if there are adapters."""
    out = F.linear(x, weight, bias)
    if down is None or up is None:
        return out, None
    narrow = F.linear(x, down.to(x.dtype))
    return out + F.linear(narrow, up.to(x.dtype)), narrow


def _of_input(grad: Tensor, weight: Tensor, down: Tensor | None, up: Tensor | None) -> Tensor:
    """(N, inputs): the gradient of a projection with respect to its input; grad: (N, outputs)."""
    found = grad @ weight.to(grad.dtype)
    if down is not None and up is not None:
        found.addmm_(grad @ up.to(grad.dtype), down.to(grad.dtype))
    return found


def _of_matrices(
    needed: tuple[bool, ...], grad: Tensor, x: Tensor, down: Tensor | None, up: Tensor | None, narrow: Tensor | None
) -> Gradients:
    """The gradients with respect to the weight, the bias, A and B, as far as `needed` says; x: (N, inputs)."""
    of_weight, of_bias, of_down, of_up = needed
    return (
        grad.t() @ x if of_weight else None,
        grad.sum(0) if of_bias else None,
        (grad @ up.to(grad.dtype)).t() @ x if of_down and up is not None else None,
        grad.t() @ narrow.flatten(0, -2) if of_up and narrow is not None else None,
    )
