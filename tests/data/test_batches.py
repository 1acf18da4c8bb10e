import torch

from components.data.batches import LMBatch, PreferenceBatch, moved_to
from components.models.attention.layout import Layout
from tests.kit.tiny_stages import lm_batch, preference_batch


def tensors_in(value):
    return [tensor for part in value for tensor in tensors_in(part)] if isinstance(value, tuple) else [value]


def test_a_batch_moves_with_its_layout_and_keeps_its_type():
    text, ranking = lm_batch([([1, 2], [3])]), preference_batch([([1], [[2], [3, 4]], [0.0, 1.0])])
    for batch, kind in ((text, LMBatch), (ranking, PreferenceBatch), (text.layout, Layout)):
        moved = moved_to(torch.device("meta"), batch)
        assert type(moved) is kind and moved._fields == batch._fields
        assert {tensor.device.type for tensor in tensors_in(moved)} == {"meta"}
    assert isinstance(moved_to(torch.device("meta"), text).layout, Layout)
    assert moved_to(torch.device("cpu"), text).layout.positions is text.layout.positions
