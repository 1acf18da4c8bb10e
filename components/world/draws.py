"""Where the world's chance comes from: generators named by a key, and decks that come round evenly."""

import random
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


def generator(*key: str | int | float) -> random.Random:
    """A generator that is a function of its key alone.

    `random.Random(text)` hashes text with SHA-512, so unlike `hash` it is the same in every process.
    """
    return random.Random("/".join(str(part) for part in key))


class Deck(Generic[Item]):
    """Different items in shuffled order, lap after lap, so that small samples are balanced too."""

    def __init__(self, items: Sequence[Item], rng: random.Random):
        self.items = list(items)
        self.rng = rng
        self.pile: list[Item] = []

    def take(self, count: int) -> list[Item]:
        """The next `count` <= len(items) items, all different; how often items came differs by at most 1."""
        if count > len(self.pile):
            left = self.pile
            lap = self.rng.sample(self.items, len(self.items))
            # what is left of the last lap is dealt first, and last in this one: never twice in one hand
            self.pile = left + sorted(lap, key=lambda item: item in left)
        hand, self.pile = self.pile[:count], self.pile[count:]
        return hand


def check_count(what: str, got: int, low: int, high: int | None = None) -> None:
    """ValueError unless low <= got <= high (no upper bound when high is None)."""
    if got < low or (high is not None and got > high):
        expected = f"{low} or more" if high is None else f"{low} to {high}"
        raise ValueError(f"{what}: got {got}, expected {expected}")
