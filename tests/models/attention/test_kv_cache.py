"""Sequences that enter and leave a cache while it is being filled."""

import pytest
import torch

from components.models.attention.kv_cache import KVCache, Steps
from tests.kit import tiny_models

VOCAB = 24
TEXTS = [list(range(2, 16)), [9, 3, 17, 2, 8, 11, 5, 20, 6, 4, 7], [7, 19, 4, 4, 20, 13, 12, 2, 3, 5, 8, 10, 11]]


@pytest.fixture(scope="module")
def model():
    return tiny_models.random_model(VOCAB)


def filled(model, cache: KVCache, texts: list[list[int]]) -> torch.Tensor:
    """The logits after the last token of each text, read into an empty cache."""
    width = max(map(len, texts))
    return model.next_logits(torch.tensor([[0] * (width - len(text)) + text for text in texts]), cache)


def starts(*lengths: int) -> torch.Tensor:
    return torch.tensor([max(lengths) - length for length in lengths])


@torch.no_grad()
def whole(model, texts):
    """The slow obvious way: every text is read as a whole, alone."""
    return torch.stack([model(torch.tensor([text]))[0, -1] for text in texts])


@pytest.mark.parametrize("stepping", [lambda cache: cache, Steps])
@pytest.mark.parametrize("newcomer", [3, 9], ids=["shorter", "longer"])
@torch.no_grad()
def test_a_prompt_that_takes_a_row_is_continued_as_if_alone_and_so_are_the_others(model, newcomer, stepping):
    cache = model.new_cache(starts(5, 4), 12, dtype=torch.float32)
    filled(model, cache, [TEXTS[0][:5], TEXTS[1][:4]])
    model.next_logits(torch.tensor([[TEXTS[0][5]], [0]]), cache)  # the second row has ended
    place = [cache.keys[0].data_ptr(), cache.starts.data_ptr()]
    cache.keys[0][1], cache.values[1][1] = float("nan"), float("inf")  # nothing of it remains
    other = cache.empty(starts(newcomer), 10)
    filled(model, other, [TEXTS[2][:newcomer]])
    cache.put(torch.tensor([1]), other)
    assert cache.length == max(6, newcomer)
    assert [cache.keys[0].data_ptr(), cache.starts.data_ptr()] == place, "a CUDA graph reads what was there"
    reader = stepping(cache)
    for step in range(2):
        tokens = torch.tensor([[TEXTS[0][6 + step]], [TEXTS[2][newcomer + step]]])
        logits = model.next_logits(tokens, reader)
        expected = whole(model, [TEXTS[0][: 7 + step], TEXTS[2][: newcomer + step + 1]])
        assert (logits - expected).abs().max() < 1e-5


@torch.no_grad()
def test_sequences_enter_a_running_batch_and_an_empty_one(model):
    cache = model.new_cache(torch.zeros(3, dtype=torch.int64), 14, dtype=torch.float32)
    for row, (count, text) in enumerate([(2, TEXTS[0]), (6, TEXTS[1]), (4, TEXTS[2])]):
        other = cache.empty(starts(count), count)
        filled(model, other, [text[:count]])
        cache.put(torch.tensor([row]), other)
    assert cache.starts.tolist() == [4, 0, 2]
    logits = model.next_logits(torch.tensor([[TEXTS[0][2]], [TEXTS[1][6]], [TEXTS[2][4]]]), cache)
    assert (logits - whole(model, [TEXTS[0][:3], TEXTS[1][:7], TEXTS[2][:5]])).abs().max() < 1e-5


@torch.no_grad()
def test_trimming_makes_room_by_the_columns_that_are_padding_in_every_row(model):
    cache = model.new_cache(starts(8, 3, 2), 8, dtype=torch.float32)
    filled(model, cache, [TEXTS[0][:8], TEXTS[1][:3], TEXTS[2][:2]])
    cache.select(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="size 8 cannot hold 9"):
        model.next_logits(torch.tensor([[3], [4]]), cache)
    cache.trim()
    assert (cache.length, cache.starts.tolist()) == (3, [0, 1])
    logits = model.next_logits(torch.tensor([[TEXTS[1][3]], [TEXTS[2][2]]]), cache)
    assert (logits - whole(model, [TEXTS[1][:4], TEXTS[2][:3]])).abs().max() < 1e-5
    cache.trim()
    assert cache.length == 4, "nothing to drop"


@torch.no_grad()
def test_a_sequence_longer_than_the_cache_is_refused(model):
    cache = model.new_cache(starts(2), 4, dtype=torch.float32)
    other = cache.empty(starts(5), 5)
    filled(model, other, [TEXTS[0][:5]])
    with pytest.raises(ValueError, match="size 4 cannot hold 5"):
        cache.put(torch.tensor([0]), other)
    assert cache.starts.tolist() == [0] and len(cache.keys[0]) == 1, "nothing has changed"
