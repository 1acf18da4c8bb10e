"""One decoder layer: what it computes, and what it keeps for the backward pass."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from components.models import layer as layer_module
from components.models.attention.rotary import rotary_tables
from components.models.config import GPTConfig
from components.models.layer import DecoderLayer


def config(**changes) -> GPTConfig:
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    return GPTConfig(**{"vocab_size": 50, "num_key_value_heads": 4, "max_position_embeddings": 64, **shape, **changes})


def angles(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return rotary_tables(torch.arange(length)[None], head_dim=8, theta=1e4, scaling=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_is_the_same_to_the_bit_with_gradients_and_without(dtype):
    torch.manual_seed(0)
    layer = DecoderLayer(config()).to(dtype)
    x, rotary = torch.randn(2, 32, 32, dtype=dtype, requires_grad=True), angles(32)
    with torch.no_grad():
        expected = layer(x, rotary, None)
    assert torch.equal(layer(x, rotary, None), expected)


@pytest.mark.parametrize("grouped", [1, 2])
def test_a_layer_keeps_one_copy_of_what_its_products_are_computed_from(grouped):
    """Per token: the inputs of both norms, rotated queries and keys, values, the attention's result and its log-sum per
    head, gate and up. Not normed inputs and their scaled copies, silu(gate), silu(gate) · up, or keys per query head.
    """
    torch.manual_seed(0)
    layer, tokens = DecoderLayer(config(num_key_value_heads=4 // grouped)), 2 * 64
    x = torch.randn(2, 64, 32, requires_grad=True)
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x, angles(64), None)
    weights = sum(p.numel() for p in layer.parameters()) + 2 * 64 * 8  # and the angles
    per_token = 2 * 32 + 32 + 2 * 32 // grouped + 32 + 4 + 2 * 48
    assert sum(kept.values()) <= 4 * (weights + per_token * tokens)


class Casts(TorchDispatchMode):
    """Counts the casts of matrices: how many numbers of each shape."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and made.dtype != args[0].dtype:
            self.shapes.append(tuple(made.shape))
        return made


def test_under_autocast_each_joined_matrix_is_cast_once_and_its_gradient_once():
    """q, k and v 32 × 32 each; gate and up 48 × 32 each. None of 96 × 32, which they are joined to."""
    torch.manual_seed(0)
    layer, rotary = DecoderLayer(config()), angles(32)
    x = torch.randn(2, 32, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), Casts() as forward:
        out = layer(x, rotary, None)
    with Casts() as backward:
        out.sum().backward()
    for casts in (forward, backward):
        assert casts.shapes.count((48, 32)) == 2 and (96, 32) not in casts.shapes
    assert forward.shapes.count((32, 32)) == 3 + 1  # and of the output's projection


def test_under_autocast_matrices_cast_before_they_are_joined_give_what_those_cast_after_do(monkeypatch):
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        layer, x = DecoderLayer(config(qk_norm=True)), torch.randn(2, 32, 32, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x, angles(32), None)
        out.square().sum().backward()
        found.append([out, x.grad, *(weight.grad for weight in layer.parameters())])
        monkeypatch.setattr(layer_module, "dtype_of_products", lambda weight: weight.dtype)
    assert all(map(torch.equal, *found))
