import math

import pytest
import torch

from components.functional.masking import last_index, masked_mean, masked_whiten, row_means, zero_outside
from tests.kit.float64 import doubles

EXACT = {"rtol": 0, "atol": 1e-8}
NAN = float("nan")


def bools(*values):
    return torch.tensor(values, dtype=torch.bool)


def close(got, expected):
    torch.testing.assert_close(got, expected, **EXACT)


def test_masked_mean_averages_the_entries_where_the_mask_is_true():
    close(masked_mean(doubles(1, 2, 3, 4, 100), bools(1, 1, 1, 1, 0)), torch.tensor(2.5, dtype=torch.float64))


def test_masked_mean_of_an_empty_mask_is_zero_with_a_zero_gradient():
    x = torch.full((2, 3), NAN, requires_grad=True)
    mean = masked_mean(x, torch.zeros(2, 3, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0.0
    assert torch.equal(x.grad, torch.zeros(2, 3))


def test_masked_mean_of_half_precision_adds_up_in_float32():
    # 4096 ones: bfloat16 stops counting at 256
    x = torch.ones(4096, dtype=torch.bfloat16)
    mean = masked_mean(x, torch.ones(4096, dtype=torch.bool))
    assert mean.dtype == torch.float32 and mean.item() == 1.0


def test_row_means_average_each_row_where_the_mask_is_true_and_an_empty_row_is_zero():
    x = doubles([1, 2, 100], [3, NAN, NAN], [NAN, NAN, NAN]).requires_grad_()
    means = row_means(x, bools([1, 1, 0], [1, 0, 0], [0, 0, 0]))
    close(means.detach(), doubles(1.5, 3, 0))
    means.sum().backward()
    close(x.grad, doubles([0.5, 0.5, 0], [1, 0, 0], [0, 0, 0]))


def test_whitening_is_biased_and_ignores_what_is_masked():
    x, mask = doubles(1, 2, 3, 4, 100), bools(1, 1, 1, 1, 0)
    expected = doubles(-1.3416407811, -0.4472135937, 0.4472135937, 1.3416407811, 0)
    unbiased = doubles(-1.1618950004, -0.3872983335, 0.3872983335, 1.1618950004, 0)
    got = masked_whiten(x, mask, shift_mean=True)
    close(got, expected)
    assert (got - unbiased).abs().max() > 0.05
    unmasked = masked_whiten(x, torch.ones_like(mask), shift_mean=True)
    assert (unmasked - expected).abs().max() > 0.5


def test_whitening_without_shift_keeps_the_mean():
    got = masked_whiten(doubles(1, 2, 3, 4, 100), bools(1, 1, 1, 1, 0), shift_mean=False)
    close(got, doubles(1.1583592189, 2.0527864063, 2.9472135937, 3.8416407811, 0))


def test_whitening_nothing_or_one_value_gives_zeros():
    assert torch.equal(masked_whiten(torch.full((3,), NAN), bools(0, 0, 0), shift_mean=True), torch.zeros(3))
    one = masked_whiten(torch.tensor([5.0, NAN]), bools(1, 0), shift_mean=True)
    assert torch.equal(one, torch.zeros(2))


def test_two_ranks_whiten_as_one_process_would():
    x, mask = doubles(1, 2, 3, 4, 7, 9), bools(1, 1, 1, 1, 0, 1)
    whole = masked_whiten(x, mask, shift_mean=True)
    # what the two all-reduces of a run split 4 + 2 would return, by hand: Σ = 19, n = 5; Σ(x − 3.8)² = 38.8
    sums = iter([doubles(19, 5), torch.tensor(38.8, dtype=torch.float64)])
    first = masked_whiten(x[:4], mask[:4], shift_mean=True, sum_over_ranks=lambda local: next(sums))
    close(first, whole[:4])
    alone = masked_whiten(x[:4], mask[:4], shift_mean=True)
    assert (alone - whole[:4]).abs().max() > 0.1


def test_whitening_does_not_see_a_positive_scale_or_a_shift():
    rewards = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(5) < torch.tensor([5, 4, 3, 5, 1, 2])[:, None]
    plain = masked_whiten(rewards, mask, shift_mean=True)
    for scale, shift in [(3.0, 0.0), (0.5, -7.0), (12.0, 100.0)]:
        moved = masked_whiten(scale * rewards + shift, mask, shift_mean=True)
        torch.testing.assert_close(moved, plain, rtol=0, atol=1e-7)
    flipped = masked_whiten(-rewards, mask, shift_mean=True)
    torch.testing.assert_close(flipped, -plain, rtol=0, atol=1e-7)


def test_last_index_is_that_of_the_last_true_and_minus_one_if_there_is_none():
    mask = bools([1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1])
    assert last_index(mask).tolist() == [1, 3, -1, 3]


def test_zero_outside_stops_nan_from_reaching_a_gradient_where_multiplying_does_not():
    x = torch.tensor([2.0, NAN], requires_grad=True)
    zero_outside(x, bools(1, 0)).exp().sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([math.exp(2.0), 0.0]))
    y = torch.tensor([2.0, NAN], requires_grad=True)
    (y.exp() * bools(1, 0)).sum().backward()
    assert y.grad[1].isnan()


@pytest.mark.parametrize(
    "function", [zero_outside, masked_mean, lambda x, mask: masked_whiten(x, mask, shift_mean=True)]
)
def test_masks_of_another_shape_or_type_are_refused(function):
    with pytest.raises(ValueError, match=r"same shape.*\(2, 3\).*\(3,\)|same shape.*\(3,\).*\(2, 3\)"):
        function(torch.ones(2, 3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="bool mask.*float32"):
        function(torch.ones(3), torch.ones(3))


def test_last_index_needs_a_two_dimensional_bool_mask():
    with pytest.raises(ValueError, match=r"\(3,\)"):
        last_index(torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="int64"):
        last_index(torch.ones(2, 3, dtype=torch.int64))
