"""Attention segment by segment, and in blocks: what the dense mask gives, without its work."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.models import gpt
from components.models.attention import blockwise, segments
from components.models.attention.attend import attend, mask_of
from components.models.attention.blockwise import attend_blockwise
from components.models.attention.layout import pack
from components.models.attention.segments import Segments, segments_of
from tests.kit import tiny_models

documents = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=6)


@pytest.fixture
def always(monkeypatch):
    """Segments are chosen however little they save."""
    monkeypatch.setattr(segments, "PER_TOKEN", -1e9)


def tensors(rows, length, *, heads=4, key_heads=2, dim=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    shapes = ((heads, length), (key_heads, length), (key_heads, length))
    return [torch.randn(rows, n, t, dim, generator=generator).to(dtype).requires_grad_() for n, t in shapes]


def attended(q, k, v, mask, real):
    """Output and gradients of the real tokens, as (N, …)."""
    given = (q, k, v)
    if isinstance(mask, Segments):
        q, k, v = (x.transpose(1, 2)[real].transpose(0, 1)[None] for x in given)
    out = attend(q, k, v, mask)
    out = out[0].transpose(0, 1) if isinstance(mask, Segments) else out.transpose(1, 2)[real]
    return [out, *torch.autograd.grad((out * torch.linspace(-1, 1, 8)).sum(), given)]


@settings(max_examples=40)
@given(shape=documents)
def test_segments_compute_what_the_dense_mask_computes_forward_and_backward(shape):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "PER_TOKEN", -1e9)
        packed = pack([[[1] * n for n in lengths] for lengths in shape], row_length=160, filler=0)
        layout = packed.layout
        q, k, v = tensors(*packed.input_ids.shape)
        chosen = segments_of(layout)
        assert isinstance(chosen, Segments)
        dense = attended(q, k, v, layout.allowed()[:, None], layout.real)
        for ours, theirs in zip(attended(q, k, v, chosen, layout.real), dense, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_prompt_shared_by_many_is_attended_to_once_and_its_gradient_is_their_sum(always):
    packed = pack([[[1] * 20, *([[2] * 5] * 6)]], row_length=64, filler=0)
    chosen = segments_of(packed.layout)
    assert [(batch.length, len(batch.slots) // batch.length) for batch in chosen.batches] == [(32, 1), (16, 6)]
    assert chosen.batches[1].trunks.tolist() == [0] * 6


def test_filler_is_not_computed_and_its_output_is_zero(always):
    model = tiny_models.random_model(50)
    packed = pack([[[1] * 9, [2] * 4], [[3] * 17]], row_length=20, filler=0)
    seen = []
    model.model.layers[0].register_forward_pre_hook(lambda layer, given: seen.append(given[0].shape[1]))
    hidden = model.hidden(packed.input_ids, packed.layout)
    real = packed.layout.real
    assert seen == [30] and real.sum() == 30 and (~real).any()
    assert hidden[~real].eq(0).all()
    poisoned = model.hidden(packed.input_ids.masked_fill(~real, 49), packed.layout)
    assert torch.equal(hidden, poisoned)


def test_padding_that_makes_sizes_few_changes_nothing(always, monkeypatch):
    """In bf16 on a CPU; here in float32, which shows any difference."""
    packed = pack([[[1] * 9, [2] * 4], [[3] * 17]], row_length=20, filler=0)
    model = tiny_models.random_model(50)

    def found(rows):
        monkeypatch.setattr(gpt, "rows_of_product", lambda count, device, dtype: rows)
        seen = []
        hook = model.model.layers[0].register_forward_pre_hook(lambda layer, given: seen.append(given[0].shape[1]))
        hidden = model.hidden(packed.input_ids, packed.layout)
        hook.remove()
        (hidden * torch.linspace(-1, 1, hidden.shape[-1])).sum().backward()
        gradients = [parameter.grad.clone() for parameter in model.model.parameters()]
        model.zero_grad()
        return seen, hidden, gradients

    _, hidden, gradients = found(30)
    for rows in (32, 50):
        seen, padded, again = found(rows)
        assert seen == [rows]
        assert torch.allclose(padded, hidden, atol=1e-6)
        assert padded[~packed.layout.real].eq(0).all()
        for ours, theirs in zip(again, gradients, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


def test_in_bf16_batches_of_many_sizes_make_products_of_few(always):
    """For every new shape of a product in bf16, oneDNN compiles a kernel: 4 to 8 ms, 1 MB."""
    model = tiny_models.random_model(50)
    sizes = set()
    model.model.layers[0].register_forward_pre_hook(lambda layer, given: sizes.add(given[0].shape[1]))
    for length in range(40, 80):
        packed = pack([[[1] * length, [2] * 3], [[3] * 70], [[4] * 60]], row_length=100, filler=0)
        with torch.autocast("cpu", torch.bfloat16):
            model.hidden(packed.input_ids, packed.layout)
    assert sizes == {176, 192, 208, 224}


def test_short_rows_keep_the_dense_mask_and_long_ones_of_short_documents_do_not():
    short = pack([[[1] * 10], [[1] * 10]], row_length=32, filler=0).layout
    long = pack([[[1] * 60]] * 32, row_length=1024, filler=0).layout
    assert isinstance(mask_of(short, 8), torch.Tensor)
    assert isinstance(mask_of(long, 8), Segments)


def test_rows_of_a_single_text_need_no_mask_even_with_filler():
    packed = pack([[[1] * 30], [[2] * 22]], row_length=32, filler=0)
    assert len(packed.input_ids) == 2
    assert mask_of(packed.layout, 8) is None
    q, k, v = tensors(*packed.input_ids.shape)
    dense = attended(q, k, v, packed.layout.allowed()[:, None], packed.layout.real)
    for ours, theirs in zip(attended(q, k, v, None, packed.layout.real), dense, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("block", [3, 8, 128])
@pytest.mark.parametrize("masked", [False, True], ids=["causal", "masked"])
def test_blocks_equal_full_attention_forward_and_backward(block, masked, monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, 10, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    k, v = (torch.randn(2, 3, 14, 8, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))
    causal = torch.ones(10, 14, dtype=torch.bool).tril(4).expand(2, 1, 10, 14)  # four keys stand before the queries
    allowed = causal & (torch.arange(14) != 2) if masked else causal
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    got = attend_blockwise(q, k, v, allowed if masked else None)
    assert torch.allclose(got, expected)
    slope = torch.randn(got.shape, dtype=torch.float64, generator=generator)
    for ours, theirs in zip(
        torch.autograd.grad(got, (q, k, v), slope), torch.autograd.grad(expected, (q, k, v), slope), strict=True
    ):
        assert torch.allclose(ours, theirs)


def test_in_bf16_the_blocks_are_as_near_the_exact_result_as_rounding_allows():
    q, k, v = tensors(2, 50, key_heads=4)
    exact = attend(q, k, v, None)
    rounded = attend(*(x.bfloat16() for x in (q, k, v)), None)
    assert rounded.dtype == torch.bfloat16
    assert 0 < (rounded - exact).abs().max() < 0.03
