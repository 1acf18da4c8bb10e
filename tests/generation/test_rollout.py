"""Experience: the positions of packed responses, which packing and splitting do not change."""

import pytest
import torch

from components.generation.rollout import Minibatch, minibatches, packed
from tests.kit import tiny_models
from tests.kit.tiny_stages import experience_of, same_bits

PAD = 0


def padded(responses):
    """Ids and mask (N, R) of responses, padded at the end."""
    width = max(map(len, responses))
    ids = torch.tensor([[*response, *[PAD] * (width - len(response))] for response in responses])
    lengths = torch.tensor([len(response) for response in responses])
    return ids, torch.arange(width) < lengths[:, None]


def experience(responses):
    """Experience whose advantages are the numbers of the responses."""
    ids, mask = padded(responses)
    numbers = torch.arange(len(responses))
    return experience_of(numbers.float(), mask, response_ids=ids, advantages=numbers)


def test_sources_and_last_of_two_responses_to_one_prompt_and_one_to_another_by_hand():
    # row 0: the longest document first:   7 8 9 | 1 2 | 3        row 1:   5 | 4 6
    #                     flat places      0 1 2   3 4   5                 6   7 8     and filler at 9, 10, 11
    part = packed([[7, 8, 9], [7, 8, 9], [5]], *padded([[1, 2], [3], [4, 6]]), row_length=6, pad_id=PAD)
    assert part.input_ids.tolist() == [[7, 8, 9, 1, 2, 3], [5, 4, 6, 0, 0, 0]]
    assert part.layout.positions.tolist() == [[0, 1, 2, 3, 4, 3], [0, 1, 2, 0, 0, 0]]
    assert part.layout.segments.tolist() == [[0, 0, 0, 1, 1, 2], [0, 1, 1, -1, -1, -1]]
    assert part.layout.parents.tolist() == [[-1, -1, -1, 0, 0, 0], [-1, 0, 0, -1, -1, -1]]
    sources = part.sources
    assert [row[keep].tolist() for row, keep in zip(sources, part.mask, strict=True)] == [[2, 3], [2], [6, 7]]
    assert part.last.tolist() == [4, 5, 8]


def test_masked_sources_point_inside_the_rows():
    part = packed([[7, 8, 9], [5]], *padded([[1], [4, 6, 2]]), row_length=8, pad_id=PAD)
    assert part.sources.min() >= 0 and part.sources.max() < part.input_ids.numel()


def test_the_fields_of_responses_are_kept_unchanged():
    known = experience([[1, 2], [3]])._replace(returns=torch.tensor([[0.5, 0.25], [1.0, 0.0]]))
    [part] = split([[7], [8]], known, epochs=1, count=1)
    kept = ("old_logprobs", "reference_logprobs", "advantages", "returns")
    assert all(torch.equal(getattr(part, name), getattr(known, name)) for name in kept)
    assert torch.equal(part.mask, known.mask) and torch.equal(part.packed.response_ids, known.response_ids)
    assert part.old_values is None


def test_a_minibatch_is_the_same_after_it_was_stored_as_plain_tensors():
    [whole] = split([[7], [8]], experience([[1, 2], [3]]), epochs=1, count=1)
    stored = whole.tensors()
    assert all(type(tensor) is torch.Tensor for tensor in stored.values())
    again = Minibatch.of(stored)
    assert same_bits(again.tensors(), stored) and "old_values" not in stored
    assert type(again.packed) is type(whole.packed) and type(again.packed.layout) is type(whole.packed.layout)


def test_a_shared_prompt_is_computed_once():
    prompt, responses = [7, 8, 9, 10], [[1], [2], [3], [4]]
    part = packed([prompt] * 4, *padded(responses), row_length=64, pad_id=PAD)
    assert part.input_ids.tolist() == [[7, 8, 9, 10, 1, 2, 3, 4]]
    assert part.sources[:, 0].tolist() == [3, 3, 3, 3]


def test_equal_prompts_that_are_not_adjacent_are_two_documents():
    part = packed([[7], [8], [7]], *padded([[1], [2], [3]]), row_length=2, pad_id=PAD)
    assert sorted(part.input_ids.tolist()) == [[7, 1], [7, 3], [8, 2]]


def test_a_shared_prompt_is_repeated_if_a_row_has_no_room_for_all_its_responses():
    part = packed([[7, 8]] * 3, *padded([[1, 2], [3, 4], [5, 6]]), row_length=6, pad_id=PAD)
    rows = part.input_ids.tolist()
    assert rows == [[7, 8, 1, 2, 3, 4], [7, 8, 5, 6, 0, 0]]
    assert part.last.tolist() == [3, 5, 9]


def sampled():
    """Prompts and responses of many lengths, some adjacent prompts equal."""
    generator = torch.Generator().manual_seed(0)

    def ids(longest):
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        return torch.randint(1, 24, (length,), generator=generator).tolist()

    prompts = [prompt for prompt in (ids(9) for _ in range(6)) for _ in range(3)]
    return prompts, [ids(7) for _ in prompts]


@torch.no_grad()
def test_log_probabilities_on_packed_rows_equal_those_of_each_prompt_and_response_alone():
    model = tiny_models.random_model(24)
    prompts, responses = sampled()
    part = packed(prompts, *padded(responses), row_length=40, pad_id=PAD)
    assert len(part.input_ids) > 1
    logp = model(part.input_ids, part.layout).flatten(0, 1).log_softmax(-1)
    found = logp[part.sources].gather(-1, part.response_ids[..., None]).squeeze(-1)
    for n, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        alone = model(torch.tensor([prompt + response]))[0].log_softmax(-1)
        expected = torch.stack([alone[len(prompt) + i - 1, token] for i, token in enumerate(response)])
        assert (found[n, : len(response)] - expected).abs().max() < 1e-5


@torch.no_grad()
def test_scores_at_last_equal_those_of_each_prompt_and_response_alone():
    model = tiny_models.random_scalar(24)
    prompts, responses = sampled()
    part = packed(prompts, *padded(responses), row_length=40, pad_id=PAD)
    found = model(part.input_ids, part.layout).flatten()[part.last]
    texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    alone = [model(torch.tensor([text]))[0, -1] for text in texts]
    assert (found - torch.stack(alone)).abs().max() < 1e-5


def split(prompts, known, *, seed=0, epochs=3, count=4):
    generator = torch.Generator().manual_seed(seed)
    parts = minibatches(prompts, known, epochs=epochs, count=count, row_length=40, pad_id=PAD, generator=generator)
    return list(parts)


def same(one, other):
    """Whether two packings of responses are equal."""
    return same_bits(*(Minibatch(rows, rows.mask, rows.mask).tensors() for rows in (one, other)))


def test_minibatches_cover_every_response_once_per_epoch_in_a_fresh_order():
    prompts, responses = sampled()
    parts = split(prompts, experience(responses))
    assert len(parts) == 3 * 4
    epochs = [[part.advantages.tolist() for part in parts[start : start + 4]] for start in (0, 4, 8)]
    for epoch in epochs:
        assert sorted(sum(epoch, [])) == list(range(len(prompts)))
        assert [len(numbers) for numbers in epoch] == [5, 5, 4, 4]  # 18 responses over 4 minibatches
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_first_epoch_has_the_rows_that_the_rollout_was_assessed_on():
    """Equal parts in the given order, so a ratio is 1 to the bit in any precision."""
    prompts, responses = sampled()
    known = experience(responses)
    parts = split(prompts, known)[:4]
    for part, rows in zip(parts, torch.arange(len(prompts)).tensor_split(4), strict=True):
        ids, mask = known.response_ids[rows], known.mask[rows]
        assessed = packed([prompts[i] for i in rows.tolist()], ids, mask, row_length=40, pad_id=PAD)
        assert same(part.packed, assessed)


def test_a_minibatch_holds_each_response_after_its_own_prompt():
    prompts, responses = sampled()
    parts = split(prompts, experience(responses), epochs=1)
    for part in parts:
        rows, flat = part.packed, part.packed.input_ids.flatten()
        for n, number in enumerate(part.advantages.tolist()):
            prompt, response = prompts[number], responses[number]
            first, last = int(rows.sources[n, 0]), int(rows.last[n])
            assert flat[first - len(prompt) + 1 : first + 1].tolist() == prompt
            assert flat[last - len(response) + 1 : last + 1].tolist() == response
            assert rows.response_ids[n][rows.mask[n]].tolist() == response


def test_the_order_depends_on_the_generator_alone():
    prompts, responses = sampled()
    known = experience(responses)
    first, again, other = (split(prompts, known, seed=seed) for seed in (1, 1, 2))
    numbers = [[part.advantages.tolist() for part in parts] for parts in (first, again, other)]
    assert numbers[0] == numbers[1] != numbers[2]


def test_one_minibatch_is_the_whole_rollout():
    prompts, responses = sampled()
    (part,) = split(prompts, experience(responses), epochs=1, count=1)
    whole = packed(prompts, *padded(responses), row_length=40, pad_id=PAD)
    assert same(part.packed, whole)


def test_more_minibatches_than_responses_are_refused():
    with pytest.raises(ValueError, match="2 responses cannot make 3 minibatches"):
        split([[7], [8]], experience([[1], [2]]), count=3)
