import torch

from components.data.batches import LMBatch, PreferenceBatch, moved_to
from components.models.attention.layout import Layout
from tests.kit.tiny_stages import lm_batch, preference_batch


def test_a_batch_moves_with_its_layout_and_keeps_its_type():
    text, ranking = lm_batch([([1, 2], [3])]), preference_batch([([1], [[2], [3, 4]], [0.0, 1.0])])
    for batch, kind in ((text, LMBatch), (ranking, PreferenceBatch), (text.layout, Layout)):
        moved = moved_to(torch.device("meta"), batch)
        assert type(moved) is kind and moved._fields == batch._fields
        tensors = [part for field in moved for part in (field if isinstance(field, Layout) else [field])]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert isinstance(moved_to(torch.device("meta"), text).layout, Layout)
    assert moved_to(torch.device("cpu"), text).layout.positions is text.layout.positions
