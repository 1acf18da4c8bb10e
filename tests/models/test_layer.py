"""One decoder layer: what it computes, and what it keeps for the backward pass."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

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
