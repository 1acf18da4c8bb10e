import math

import pytest

from components.functional.bradley_terry import ELO, PRIOR, strengths


def test_no_games_no_strengths():
    assert strengths({}) == {}


def test_two_players_are_apart_by_the_log_odds_of_their_results():
    """With many games the prior has no weight: 3 wins in 4 are odds of 3."""
    found = strengths({("a", "b"): 30_000, ("b", "a"): 10_000})
    assert list(found) == ["a", "b"]
    assert found["a"].elo - found["b"].elo == pytest.approx(ELO * math.log(3), abs=0.1)
    assert found["a"].elo == pytest.approx(-found["b"].elo)
    error = 1 / math.sqrt(40_000 * 3 / 4 * 1 / 4) / 2  # of half the difference
    assert found["a"].high - found["a"].elo == pytest.approx(1.96 * ELO * error, rel=1e-3)


def test_the_most_probable_strengths_of_one_game():
    """s = ±x solves 1 − σ(2x) = x / prior², found here by bisection."""
    low, high = 0.0, PRIOR**2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 / (1 + math.exp(2 * middle)) > middle / PRIOR**2 else (low, middle)
    assert strengths({("b", "a"): 1})["b"].elo == pytest.approx(ELO * low)


def test_a_player_who_never_played_another_is_compared_by_way_of_a_third():
    found = strengths({("a", "b"): 8, ("b", "a"): 2, ("b", "c"): 8, ("c", "b"): 2})
    assert list(found) == ["a", "b", "c"] and found["b"].elo == pytest.approx(0)
    assert all(one.low < one.elo < one.high for one in found.values())


def test_only_ties_are_equal_strengths():
    assert all(one.elo == pytest.approx(0) for one in strengths({("a", "b"): 2.5, ("b", "a"): 2.5}).values())
