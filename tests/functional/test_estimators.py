import itertools
import math

import pytest
import torch

from components.functional.estimators import best_of_n_kl, calibration_error, majority_credit, pass_at_k, ranking_credit
from tests.kit.float64 import doubles
from tests.kit.oracles import exact_kl, kl_regularized_optimum


def discrete_best_of_n_kl(n, m):
    """KL of the best of n over m equally likely, distinct rewards, summed outright."""
    best = [(i / m) ** n - ((i - 1) / m) ** n for i in range(1, m + 1)]
    return sum(p * math.log(p * m) for p in best if p > 0)


@pytest.mark.parametrize(
    "n, kl",
    [(1, 0), (2, 0.193147), (4, 0.636294), (8, 1.204442), (16, 1.835089), (64, 3.174508), (512, 5.240278)],
)
def test_kl_of_best_of_n(n, kl):
    assert best_of_n_kl(n) == pytest.approx(kl, abs=1e-6)


@pytest.mark.parametrize("m, n, kl", [(10, 4, 0.628825), (10, 16, 1.733063), (1000, 4, 0.636294), (1000, 16, 1.835078)])
def test_the_formula_is_the_limit_of_many_rewards_from_above(m, n, kl):
    assert discrete_best_of_n_kl(n, m) == pytest.approx(kl, abs=1e-6)
    assert discrete_best_of_n_kl(n, m) < best_of_n_kl(n)


def test_ties_cost_less_kl_than_the_formula():
    good = 1 - 0.7**4
    kl = good * math.log(good / 0.3) + (1 - good) * math.log((1 - good) / 0.7)
    assert good == pytest.approx(0.7599)
    assert kl == pytest.approx(0.449341, abs=1e-6) and kl < best_of_n_kl(4)


@pytest.mark.parametrize("k, expected", [(1, 0.4), (2, 0.7), (3, 0.9), (4, 1.0), (5, 1.0)])
def test_pass_at_k_by_drawing_every_subset(k, expected):
    """Two of five are correct: C(3, k) / C(5, k) of the subsets have none of them."""
    every = [any(i in (0, 3) for i in chosen) for chosen in itertools.combinations(range(5), k)]
    assert sum(every) / len(every) == pytest.approx(expected)
    assert pass_at_k(torch.tensor([2, 0, 5]), 5, k=k).tolist() == pytest.approx([expected, 0, 1])
    with pytest.raises(ValueError, match="expected k from 1 to 5"):
        pass_at_k(torch.tensor([2]), 5, k=6)


@pytest.mark.parametrize("k, expected", [(1, 0.48), (3, 0.58), (4, None)])
def test_majority_of_few_votes_by_enumerating_every_ballot(k, expected):
    """One correct answer with probability 0.48, seven wrong ones share the rest; ties are split."""
    weight = [0.48] + [0.52 / 7] * 7
    ballots = list(itertools.product(range(8), repeat=k))
    credit = majority_credit(torch.tensor(ballots), torch.zeros(len(ballots), dtype=torch.int64))
    total = 0.0
    for ballot, got in zip(ballots, credit.tolist(), strict=True):
        counts = {answer: ballot.count(answer) for answer in ballot}
        leaders = [answer for answer, count in counts.items() if count == max(counts.values())]
        assert got == pytest.approx((0 in leaders) / len(leaders))
        total += math.prod(weight[answer] for answer in ballot) * got
    if expected is not None:
        assert total == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    "p, k, expected", [(0.48, 5, 0.73), (0.48, 9, 0.87), (0.48, 17, 0.97), (0.74, 3, 0.87), (0.74, 5, 0.96)]
)
def test_majority_of_more_votes_by_simulation(p, k, expected):
    probabilities = torch.tensor([p] + [(1 - p) / 7] * 7)
    ballots = torch.multinomial(probabilities, 20000 * k, replacement=True, generator=torch.Generator().manual_seed(k))
    credit = majority_credit(ballots.view(20000, k), torch.zeros(20000, dtype=torch.int64))
    assert credit.mean().item() == pytest.approx(expected, abs=0.005 + 3 * 0.45 / 20000**0.5)


def test_a_pair_counts_one_in_order_half_in_a_tie_and_nothing_the_other_way_round():
    assert ranking_credit(doubles(1, -0.5, 0)).tolist() == [1.0, 0.0, 0.5]


def test_calibration_error_by_hand():
    confidence = doubles(0.55, 0.65, 0.75, 0.85, 0.95, 0.95)
    correct = torch.tensor([1, 0, 1, 1, 1, 0]).bool()
    assert calibration_error(confidence, correct, num_bins=5).item() == pytest.approx(0.4, abs=1e-8)
    # one bin: 4 of 6 right at a mean confidence of 4.7/6
    one_bin = calibration_error(confidence, correct, num_bins=1).item()
    assert one_bin == pytest.approx(4.7 / 6 - 4 / 6, abs=1e-8)
    assert calibration_error(doubles(1.0), torch.tensor([True]), num_bins=10).item() == 0.0


REFERENCE, REWARDS = doubles(0.5, 0.3, 0.2), doubles(0, 1, 2)


def test_kl_regularized_optimum():
    policy, value = kl_regularized_optimum(REFERENCE, REWARDS, beta=0.5)
    expected = doubles(0.0366667118, 0.1625594345, 0.8007738537)
    torch.testing.assert_close(policy, expected, rtol=0, atol=1e-8)
    kl = exact_kl(policy.log(), REFERENCE.log())
    assert kl.item() == pytest.approx(0.9154754944, abs=1e-8)
    assert (policy @ REWARDS).item() == pytest.approx(1.7641071419, abs=1e-8)
    assert value.item() == pytest.approx(1.3063693946, abs=1e-8)
    assert (policy @ REWARDS - 0.5 * kl).item() == pytest.approx(value.item(), abs=1e-12)


def test_no_other_policy_does_better():
    _, value = kl_regularized_optimum(REFERENCE, REWARDS, beta=0.5)
    others = torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(-1)
    objective = others @ REWARDS - 0.5 * exact_kl(others.log(), REFERENCE.log().expand(500, 3))
    assert (objective <= value).all()


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="n of at least 1"):
        best_of_n_kl(0)
    with pytest.raises(ValueError, match=r"\(B, k\)"):
        majority_credit(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="calibration_error.*same shape"):
        calibration_error(torch.ones(2), torch.ones(3), num_bins=5)
    with pytest.raises(ValueError, match=r"in \[0.5, 1\]"):
        calibration_error(torch.tensor([0.3]), torch.tensor([True]), num_bins=5)
