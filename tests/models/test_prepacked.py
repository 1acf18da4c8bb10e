"""Matrices stored for generation: the same products as torch's, in other layouts."""

import pytest
import torch
import torch.nn.functional as F

from components.models.prepacked import packs, prepacked, product, rms_norm
from tests.kit import tiny_models


@pytest.mark.parametrize("rows", [1, 2, 3, 40])
@pytest.mark.parametrize("bias", [None, torch.randn(48)], ids=["no bias", "bias"])
@torch.no_grad()
def test_a_product_with_a_stored_matrix_is_the_linear_one_for_any_number_of_rows(rows, bias):
    weight, x = torch.randn(48, 32), torch.randn(rows, 5, 32)
    before = weight.clone()
    for planned in (1, 2, 40):
        stored = prepacked(weight, torch.float32, planned)
        for batch in (x, x[:, -1], x.transpose(0, 1)):
            assert (product(batch, stored, bias) - F.linear(batch, weight, bias)).abs().max() < 1e-5
    assert torch.equal(weight, before)


def test_several_rows_have_packed_matrices_in_float32_and_one_row_or_bfloat16_none():
    weight = torch.randn(48, 32)
    assert packs(weight), "torch has oneDNN on every processor that it is tested on"
    assert prepacked(weight, torch.float32, 4).is_mkldnn
    assert not prepacked(weight, torch.float32, 1).is_mkldnn
    assert not prepacked(weight, torch.bfloat16, 4).is_mkldnn
    assert torch.equal(prepacked(weight[0], torch.float32, 4), weight[0])


@torch.no_grad()
def test_a_cache_has_the_layout_for_the_rows_of_its_steps():
    model = tiny_models.random_model(24)
    prompt = torch.zeros(1, dtype=torch.int64)
    assert not model.new_cache(prompt, 8, dtype=torch.float32).head.is_mkldnn
    cache = model.new_cache(prompt, 8, dtype=torch.float32, rows=4)
    assert cache.head.is_mkldnn and cache.weights[0].down.weight.is_mkldnn


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_norm_of_few_rows_is_torchs(dtype):
    x, weight = (torch.randn(3, 1, 48) * torch.tensor([1e-3, 1, 1e3])[:, None, None]).to(dtype), torch.randn(48)
    expected = F.rms_norm(x, (48,), weight.to(dtype), 1e-5)
    assert (rms_norm(x, weight.to(dtype), 1e-5) - expected).abs().max() < 1e-5
    assert torch.equal(rms_norm(torch.zeros(1, 48), weight, 1e-5), torch.zeros(1, 48)), "epsilon keeps 0 finite"
