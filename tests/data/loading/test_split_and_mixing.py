import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.data.loading import split
from components.data.loading.mixing import mix

KEYS = st.lists(st.integers(0, 2**63 - 1), max_size=80)


def test_the_key_of_a_text_is_the_start_of_its_sha256():
    # sha256("abc") = ba7816bf 8f01cfea …, halved to fit 63 bits
    assert split.key("abc") == 0xBA7816BF8F01CFEA >> 1


def test_equal_prompts_have_equal_keys_in_any_order_of_their_fields():
    one, other = [{"role": "user", "content": "é"}], [{"content": "é", "role": "user"}]
    assert split.key(one) == split.key(other) != split.key([{"role": "user", "content": "e"}])


@given(KEYS, st.floats(0, 0.5), st.randoms())
def test_the_split_does_not_depend_on_order_or_repeats(keys, fraction, random):
    chosen = split.validation_keys(np.array(keys, dtype=np.int64), fraction)
    again = keys * 2
    random.shuffle(again)
    np.testing.assert_array_equal(chosen, split.validation_keys(np.array(again, dtype=np.int64), fraction))


@given(st.sets(st.integers(0, 2**63 - 1), min_size=20, max_size=60), st.floats(0.001, 0.5))
def test_from_twenty_prompts_on_there_is_a_validation_prompt(keys, fraction):
    chosen = split.validation_keys(np.array(list(keys), dtype=np.int64), fraction)
    expected = {key for key in keys if key < int(fraction * 2**63)} or {min(keys)}
    assert set(chosen.tolist()) == expected


def test_below_twenty_prompts_or_with_no_share_nothing_is_held_out():
    assert len(split.validation_keys(np.arange(19), 0.5)) == 0
    assert len(split.validation_keys(np.arange(100), 0.0)) == 0


def test_the_share_is_the_requested_one():
    keys = np.array([split.key(str(i)) for i in range(4000)])
    assert abs(len(split.validation_keys(keys, 0.1)) - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5


def test_more_than_half_cannot_be_held_out():
    with pytest.raises(ValueError, match="val_fraction: got 0.6, expected a share from 0 to 0.5"):
        split.validation_keys(np.arange(100), 0.6)


def test_a_part_of_the_prompts_is_decided_by_the_low_half_of_their_keys():
    quarters = [0, 2**30, 2**31, 3 * 2**30]  # places 0, ¼, ½ and ¾ of 2³²
    keys = np.array([2**32 * number + low for number, low in enumerate(quarters)])
    assert split.in_part(keys, [0.0, 0.5]).tolist() == [True, True, False, False]
    assert split.in_part(keys, [0.5, 1.0]).tolist() == [False, False, True, True]
    assert split.in_part(keys, None).all()


def test_a_part_has_its_share_whatever_is_held_out():
    keys = np.array([split.key(str(i)) for i in range(4000)])
    training = keys[~np.isin(keys, split.validation_keys(keys, 0.25))]
    first, second = split.in_part(training, [0.0, 0.3]), split.in_part(training, [0.3, 1.0])
    assert (first ^ second).all()
    assert abs(first.sum() - 0.3 * len(training)) < 4 * (len(training) * 0.3 * 0.7) ** 0.5


@pytest.mark.parametrize("part", [[0.5, 0.5], [-0.1, 0.5], [0.5, 1.1], [0.1], [0.9, 0.1]])
def test_a_part_is_two_shares_in_order(part):
    with pytest.raises(ValueError, match=r"train_part: got \[.*\], expected two shares \[low, high\]"):
        split.in_part(np.array([], dtype=np.int64), part)


def test_weights_are_shares_of_tokens_not_of_records():
    rng = np.random.default_rng(0)
    lengths = [rng.integers(1, 10, 3000), rng.integers(100, 300, 200), rng.integers(1, 50, 1000)]
    weights = [5.0, 3.0, 2.0]
    chosen, shares = mix(lengths, weights, seed=1)
    tokens = [lengths[s][chosen[chosen[:, 0] == s, 1]].sum() for s in range(3)]
    for share, got, weight, length in zip(shares, tokens, weights, lengths, strict=True):
        # sampling records until the share is full would be off by about sqrt(records) records
        sigma = length.std() * (got / length.mean()) ** 0.5 / sum(tokens)
        assert share.configured == weight / 10
        assert share.realized == got / sum(tokens)
        assert abs(share.realized - share.configured) < 4 * sigma
        assert share.epochs == got / length.sum()
    assert sum(tokens) == pytest.approx(sum(length.sum() for length in lengths), rel=0.01)


def test_a_source_is_repeated_in_full_before_any_record_repeats_again():
    chosen, shares = mix([np.full(10, 1), np.full(90, 1)], [0.25, 0.75], seed=0)  # 25 of 10: two and a half times
    counts = np.bincount(chosen[chosen[:, 0] == 0, 1], minlength=10)
    assert sorted(counts) == [2] * 5 + [3] * 5
    assert shares[0].epochs == 2.5


def test_a_single_source_is_used_once_and_shuffled_only_by_the_seed():
    lengths = [np.arange(1, 101)]
    chosen, shares = mix(lengths, [7.0], seed=5)
    assert sorted(chosen[:, 1]) == list(range(100))
    assert shares == [(1.0, 1.0, 1.0)]
    np.testing.assert_array_equal(chosen, mix(lengths, [7.0], seed=5)[0])
    assert (chosen != mix(lengths, [7.0], seed=6)[0]).any()


@pytest.mark.parametrize(("lengths", "weight"), [([1], 0.0), ([1], -1.0), ([1], float("nan")), ([], 1.0)])
def test_a_meaningless_weight_is_refused(lengths, weight):
    with pytest.raises(ValueError, match=r"mixture\[1\]"):
        mix([np.array([1]), np.array(lengths, dtype=int)], [1.0, weight], seed=0)
