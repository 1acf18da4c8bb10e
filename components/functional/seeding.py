"""Random numbers by what they are for: each generator depends on (seed, rank, step, …) alone, so that resuming needs no
saved state. The built-in world has its own, which need neither torch nor numpy (components/world/randomness.py)."""

import numpy as np
import torch

RANKS, BATCHES = 100_003, 1_000_003  # primes above the usual numbers of processes and of batches


def seeded(device: torch.device | str, *numbers: int) -> torch.Generator:
    """A generator whose stream depends on `numbers` (seed, rank, step, …) alone."""
    state = 0
    for number in numbers:  # splitmix-like mixing: adjacent seeds must not give correlated streams
        state = (state * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return torch.Generator(device=device).manual_seed(state)


def numpy_seeded(*numbers: int) -> np.random.Generator:
    """A NumPy generator whose stream depends on `numbers` alone, none of them negative."""
    return np.random.default_rng(numbers)


def step_seed(seed: int, rank: int, batch: int) -> int:
    """The seed of what is random within training step `batch` (dropout), 0 or more and below 2⁶⁴.

    All differ for the first BATCHES batches of RANKS processes. After that a process gets the seeds that the next one
    had BATCHES batches before.
    """
    return ((seed * RANKS + rank) * BATCHES + batch) % 2**64


def uniform(*numbers: int) -> float:
    """A random number in [0, 1) that depends on `numbers` (seed, sample, token, …) alone: splitmix64's mixing of each.

    Source: Steele, Lea and Flood 2014, section 4.
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return (state >> 11) * 2.0**-53


def derived_seed(*numbers: int) -> int:
    """A seed in [0, 2⁵³) that depends on `numbers` (seed, prompt, …) alone."""
    return int(uniform(*numbers) * 2**53)
