import pytest
import torch

from components.evaluation.measure.intervals import (
    clustered,
    interval_of_shares,
    mean_interval,
    share_interval,
    t_quantile,
)
from components.evaluation.measure.over_seeds import spread


@pytest.mark.parametrize(
    ("degrees", "table"), [(1, 12.706), (4, 2.776), (5, 2.571), (11, 2.201), (30, 2.042), (120, 1.980)]
)
def test_quantiles_are_those_of_a_printed_table_of_students_t(degrees, table):
    assert t_quantile(degrees) == pytest.approx(table, rel=0.01)


def test_with_clusters_of_one_size_the_error_is_the_deviation_of_their_means_over_the_root_of_their_number():
    values = torch.tensor([1.0, 3.0, 5.0, 7.0])  # means 2 and 6, deviation √8, error √8 / √2 = 2
    assert clustered(values, ["a", "a", "b", "b"]) == pytest.approx((4.0, 2.0, 2))
    assert mean_interval(values, ["a", "a", "b", "b"]) == pytest.approx([4 - 25.412, 4 + 25.412])


def test_clusters_of_different_sizes_weigh_by_their_size():
    # mean 2; residual sums of a: (0−2)+(0−2) = −4, of b: 6−2 = 4; over what the others are of all, 1/3 and 2/3: −12
    # and 6; error = √(1/2 · 180) / 3; as good as 3² / (2² + 1²) clusters of one size
    assert clustered(torch.tensor([0.0, 0.0, 6.0]), [7, 7, 8]) == pytest.approx((2.0, 10**0.5, 1.8))


def test_samples_that_agree_within_a_question_say_less_than_independent_ones():
    values = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    together = mean_interval(values, [0, 0, 1, 2, 2, 3])
    alone = mean_interval(values, [0, 1, 2, 3, 4, 5])
    assert together[0] < alone[0] < 0.5 < alone[1] < together[1]


def test_one_question_says_nothing_about_others():
    assert mean_interval(torch.tensor([1.0, 2.0, 3.0]), ["same"] * 3) is None


def test_the_interval_covers_the_truth_nineteen_times_in_twenty():
    generator = torch.Generator().manual_seed(0)
    clusters = [number for number in range(12) for _ in range(8)]
    covered = 0
    for _ in range(400):
        questions = torch.randn(12, 1, generator=generator)  # truth: 0; samples of a question share its part
        values = (questions + 0.5 * torch.randn(12, 8, generator=generator)).flatten()
        low, high = mean_interval(values, clusters)
        covered += low < 0 < high
    assert 0.92 < covered / 400 < 0.98


def test_a_share_of_independent_pairs_has_wilsons_interval():
    # 8 of 10: error² = .16 / 9 and t = 2.262, so as good as 9 · (1.960 / 2.262)² = 6.756; by hand: .69125 ± .26424
    right = torch.tensor([1.0] * 8 + [0.0] * 2)
    assert share_interval(right, range(10)) == pytest.approx([0.42701, 0.95550], abs=1e-3)


def coverage(share, make, interval, *, repeats=400):
    """How often the interval of `make(generator)` contains the true share."""
    generator = torch.Generator().manual_seed(0)
    ends = [interval(*make(generator)) for _ in range(repeats)]
    return sum(low <= share <= high for low, high in ends) / repeats


@pytest.mark.parametrize("prompts", [3, 5, 12])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_the_interval_of_a_share_covers_it_nineteen_times_in_twenty_at_few_prompts(prompts, share):
    """Eight answers to a prompt, each prompt with a share of its own: within 0.3 of the mean, symmetrically."""
    clusters = [number for number in range(prompts) for _ in range(8)]
    width = min(0.3, 1 - share)

    def answers(generator):
        own = share + width * (2 * torch.rand(prompts, 1, generator=generator) - 1)
        return (torch.rand(prompts, 8, generator=generator) < own).flatten().double(), clusters

    assert coverage(share, answers, share_interval) >= 0.935


@pytest.mark.parametrize("sizes", [[40, 1, 1, 1], [10, 1, 1, 1, 1, 1], [36] * 3 + [1] * 9], ids=str)
def test_intervals_cover_if_a_few_prompts_have_most_of_the_answers(sizes):
    """As for rankings, where nine answers to a prompt make 36 pairs and two make one."""
    clusters = [number for number, size in enumerate(sizes) for _ in range(size)]

    def answers(generator):
        own = torch.rand(len(sizes), generator=generator).sqrt()[clusters]  # mean 2/3
        return (torch.rand(len(clusters), generator=generator) < own).double(), clusters

    assert coverage(2 / 3, answers, share_interval) >= 0.93

    def numbers(generator):
        own = torch.randn(len(sizes), generator=generator)[clusters]
        return own + 0.5 * torch.randn(len(clusters), generator=generator), clusters

    assert coverage(0.0, numbers, mean_interval) >= 0.93


@pytest.mark.parametrize("questions", [2, 3, 5, 12])
def test_the_interval_of_shares_covers_their_mean_even_if_most_are_nearly_one(questions):
    """Nine questions of ten have a share of at least 0.98, the tenth has any."""

    def shares(generator):
        near, far = torch.rand(2, questions, generator=generator, dtype=torch.float64)
        often = torch.rand(questions, generator=generator) < 0.9
        return (torch.where(often, 0.98 + 0.02 * near, far),)

    assert coverage(0.9 * 0.99 + 0.1 * 0.5, shares, interval_of_shares) >= 0.935


@pytest.mark.parametrize("questions", [3, 12])
def test_the_interval_of_evenly_spread_shares_covers_their_mean(questions):
    shares = lambda generator: (torch.rand(questions, generator=generator, dtype=torch.float64),)
    assert coverage(0.5, shares, interval_of_shares) >= 0.935


def test_the_interval_over_seeds_covers_the_truth_nineteen_times_in_twenty():
    seeds = lambda generator: (torch.randn(3, generator=generator).tolist(),)
    assert 0.92 < coverage(0.0, seeds, lambda values: spread(values)["interval"]) < 0.98


@pytest.mark.parametrize("values", [[1.0], [1.0] * 3, [0.0] * 3, [0.7] * 3])
def test_no_interval_is_a_point(values):
    """Values that agree, or a single one, do not show how another would differ."""
    shares = torch.tensor(values, dtype=torch.float64)
    for low, high in (share_interval(shares, range(len(values))), interval_of_shares(shares)):
        assert 0 <= low < high <= 1 and high - low > 0.3
    assert mean_interval(shares, range(len(values))) is None


def test_ten_prompts_all_right_leave_room_for_doubt():
    low, high = share_interval(torch.ones(40), [number // 4 for number in range(40)])
    assert (low, high) == (pytest.approx(10 / (10 + 1.959964**2)), pytest.approx(1.0))


def test_one_prompt_with_many_pairs_counts_as_one():
    low, high = share_interval(torch.tensor([1.0, 0.0] * 50), ["same"] * 100)
    assert low < 0.1 and high > 0.9


def test_every_value_needs_a_cluster():
    with pytest.raises(ValueError, match="got 1 for 2"):
        clustered(torch.ones(2), [0])
