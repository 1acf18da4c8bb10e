"""Strengths of players from the results of their games."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

PRIOR = 1.5  # standard deviation of a strength before any game, in nats: about 260 Elo points
STEPS = 50
ELO = 400 / math.log(10)  # Elo points per nat: odds of 10 are 400 points


class Strength(NamedTuple):
    """A strength in Elo points relative to the mean of all players, with the ends of its 95% interval."""

    elo: float
    low: float
    high: float


def strengths(wins: Mapping[tuple[str, str], float]) -> dict[str, Strength]:
    """Players by strength s, the strongest first, where P(a beats b) = σ(s_a − s_b).

    wins: games that the first has won against the second; a tie is half a win for each. The strengths are the most
    probable ones under a normal prior, which keeps them finite for a player who has won all games, and the intervals
    are the normal ones of the curvature there. Source: Bradley & Terry 1952; Elo 1978.
    """
    names = sorted({name for pair in wins for name in pair})
    if not names:
        return {}
    won = torch.zeros(len(names), len(names), dtype=torch.float64)
    for (winner, loser), count in wins.items():
        won[names.index(winner), names.index(loser)] += count
    played = won + won.T
    values = torch.zeros(len(names), dtype=torch.float64)
    for _ in range(STEPS):  # Newton's method, on a concave function
        expected = torch.sigmoid(values[:, None] - values)
        slope = (won - played * expected).sum(1) - values / PRIOR**2
        weights = played * expected * (1 - expected)
        curvature = torch.diag(weights.sum(1) + PRIOR**-2) - weights
        values = values + torch.linalg.solve(curvature, slope)
    center = torch.eye(len(names), dtype=torch.float64) - 1 / len(names)
    spread = (center @ torch.linalg.inv(curvature) @ center).diagonal().clamp(min=0).sqrt()
    made = [
        Strength(ELO * value, ELO * (value - 1.96 * error), ELO * (value + 1.96 * error))
        for value, error in zip((values - values.mean()).tolist(), spread.tolist())
    ]
    return dict(sorted(zip(names, made), key=lambda one: -one[1].elo))
