"""Packed rows: the positions of tokens and what they can attend to."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.models.attention.attend import attend, mask_of
from components.models.attention.layout import Layout, pack


def test_a_prompt_with_two_answers_by_hand():
    packed = pack([[[1, 2, 3], [4, 5], [6]], [[7, 8]]], row_length=10, filler=0)
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert packed.layout.positions.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1]]
    assert packed.layout.segments.tolist() == [[0, 0, 0, 1, 1, 2, 3, 3]]
    assert packed.layout.parents.tolist() == [[-1, -1, -1, 0, 0, 0, -1, -1]]
    assert packed.spans == [[(0, 3), (3, 2), (5, 1)], [(6, 2)]]
    seen = packed.layout.allowed()[0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 1, 0, 0],  # the second answer sees the prompt, not the first answer
        [0, 0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1, 1],
    ]


def test_filler_at_a_rows_end_is_marked_and_seen_by_no_token():
    packed = pack([[[1, 2, 3]], [[4]], [[5, 6, 7]]], row_length=4, filler=9)
    assert packed.input_ids.tolist() == [[1, 2, 3, 4], [5, 6, 7, 9]]
    assert packed.layout.real.tolist() == [[True] * 4, [True, True, True, False]]
    assert packed.layout.allowed()[1, :3, 3].any().item() is False
    assert packed.layout.allowed()[1, 3, 3].item() is True  # no empty row of attention, which would be NaN


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=12))
def test_every_document_is_in_exactly_one_row(shapes):
    token = iter(range(1, 10_000))
    documents = [[[next(token) for _ in range(n)] for n in shape] for shape in shapes]
    packed = pack(documents, row_length=40, filler=0)
    flat = packed.input_ids.flatten().tolist()
    width = packed.input_ids.shape[1]
    for document, spans in zip(documents, packed.spans, strict=True):
        for segment, (start, length) in zip(document, spans, strict=True):
            assert flat[start : start + length] == segment
        assert len({start // width for start, _ in spans}) == 1
    assert int(packed.layout.real.sum()) == sum(len(s) for d in documents for s in d)
    assert width <= 40


@pytest.mark.parametrize(
    ("documents", "message"),
    [([], "at least one"), ([[[1] * 9]], "does not fit"), ([[[], [1]]], "empty")],
)
def test_what_cannot_be_packed_is_refused(documents, message):
    with pytest.raises(ValueError, match=message):
        pack(documents, row_length=8, filler=0)


def test_attention_equals_the_softmax_written_out():
    torch.manual_seed(0)
    packed = pack([[[1, 2, 3], [4, 5]], [[6, 7]]], row_length=8, filler=0)
    q, k, v = torch.randn(1, 4, 7, 8), torch.randn(1, 2, 7, 8), torch.randn(1, 2, 7, 8)
    out = attend(q, k, v, mask_of(packed.layout, 8))
    allowed = packed.layout.allowed()[0]
    for head in range(4):
        for i in range(7):
            seen = [j for j in range(7) if allowed[i, j]]
            scores = torch.tensor([float(q[0, head, i] @ k[0, head // 2, j]) / 8**0.5 for j in seen])
            expected = sum(p * v[0, head // 2, j] for p, j in zip(scores.softmax(0), seen, strict=True))
            assert torch.allclose(out[0, head, i], expected, atol=1e-5)


@pytest.mark.gpu
def test_the_block_mask_of_cuda_allows_what_the_dense_mask_allows():
    packed = pack([[[1] * 30, [2] * 20, [3] * 10], [[4] * 40]], row_length=128, filler=0)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, packed.input_ids.shape[1], 32) for _ in range(3))
    dense = attend(q, k, v, packed.layout.allowed()[:, None])
    on_device = Layout(*(field.cuda() for field in packed.layout))
    block = attend(q.cuda(), k.cuda(), v.cuda(), mask_of(on_device, 32))
    assert (dense - block.cpu())[:, :, packed.layout.real[0]].abs().max() < 2e-3


@pytest.mark.parametrize(("lengths", "row_length", "width"), [([40, 20], 512, 60), ([70], 512, 80), ([147], 150, 150)])
def test_long_rows_come_in_few_lengths(lengths, row_length, width):
    packed = pack([[[1] * n] for n in lengths], row_length=row_length, filler=0)
    assert packed.input_ids.shape[1] == width
    assert int(packed.layout.real.sum()) == sum(lengths)
