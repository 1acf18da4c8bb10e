"""Products that recompute their input: the same output and gradients as torch's."""

import pytest
import torch
import torch.nn.functional as F

from components.models.projection import Projection, project_gated, project_normed

EPS = 1e-5


def leaf(*shape: int, dtype: torch.dtype = torch.float64, trained: bool = True) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_(trained)


def matrices(inputs: int, outputs: int, kind: str, dtype: torch.dtype = torch.float64) -> Projection:
    """A trained matrix with or without a bias, or a frozen one with adapters."""
    adapted = kind == "adapted"
    weight = leaf(outputs, inputs, dtype=dtype, trained=not adapted)
    bias = leaf(outputs, dtype=dtype) if kind == "bias" else None
    low_rank = (leaf(3, inputs, dtype=dtype), leaf(outputs, 3, dtype=dtype)) if adapted else None
    return Projection(weight, bias, low_rank)


def plainly(x: torch.Tensor, projection: Projection) -> torch.Tensor:
    out = F.linear(x, projection.weight, projection.bias)
    if projection.low_rank is not None:
        down, up = projection.low_rank
        out = out + x @ down.T @ up.T
    return out


def gradients(out: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    slope = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    return list(torch.autograd.grad(out, leaves, slope))


def trained(*tensors: torch.Tensor | None) -> list[torch.Tensor]:
    return [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]


@pytest.mark.parametrize("kind", ["plain", "bias", "adapted"])
@pytest.mark.parametrize("source_trained", [True, False])
def test_a_normed_product_has_the_gradients_of_its_definition(kind, source_trained):
    torch.manual_seed(0)
    x, scale = leaf(2, 5, 8, trained=source_trained), leaf(8, trained=kind != "adapted")
    projection = matrices(8, 6, kind)
    normed = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * scale
    leaves = trained(x, scale, projection.weight, projection.bias, *(projection.low_rank or ()))
    out, expected = project_normed(x, scale, EPS, projection), plainly(normed, projection)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients(out, leaves), gradients(expected, leaves))


@pytest.mark.parametrize("kind", ["plain", "bias", "adapted"])
@pytest.mark.parametrize("source_trained", [True, False])
def test_a_gated_product_has_the_gradients_of_its_definition(kind, source_trained):
    torch.manual_seed(0)
    gate_up, projection = leaf(2, 5, 14, trained=source_trained), matrices(7, 4, kind)
    gate, up = gate_up.chunk(2, dim=-1)
    leaves = trained(gate_up, projection.weight, projection.bias, *(projection.low_rank or ()))
    out, expected = project_gated(gate_up, projection), plainly(gate * gate.sigmoid() * up, projection)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients(out, leaves), gradients(expected, leaves))


@pytest.mark.parametrize("kind", ["plain", "adapted"])
def test_under_autocast_products_and_their_gradients_are_in_bf16_and_the_rest_is_not(kind):
    torch.manual_seed(0)
    x, scale, first = (
        leaf(9, 16, dtype=torch.float32),
        leaf(16, dtype=torch.float32),
        matrices(16, 24, kind, torch.float32),
    )
    second = matrices(12, 8, kind, torch.float32)
    leaves = trained(x, scale, second.weight, *(second.low_rank or ()))
    with torch.autocast("cpu", torch.bfloat16):
        out = project_gated(project_normed(x, scale, EPS, first), second)
        gate, up = plainly(F.rms_norm(x, (16,), scale, EPS), first).chunk(2, dim=-1)
        expected = plainly(F.silu(gate) * up, second)
    assert out.dtype == torch.bfloat16
    for ours, theirs in zip(gradients(out, leaves), gradients(expected, leaves), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.03, atol=0.03 * float(theirs.abs().max()))
