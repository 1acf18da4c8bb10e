"""The world's sources of randomness: generators named by a key, and decks that are dealt evenly."""

import random
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


def generator(*key: str | int | float) -> random.Random:
    """A generator determined by its key alone.

    `random.Random(text)` hashes text with SHA-512, so unlike `hash` it is the same in every process.
    """
    return random.Random("/".join(str(part) for part in key))


class Deck(Generic[Item]):
    """Distinct items in shuffled order, reshuffled after each pass, so that even small samples are balanced."""

    def __init__(self, items: Sequence[Item], rng: random.Random):
        self.items = list(items)
        self.rng = rng
        self.pile: list[Item] = []

    def take(self, count: int) -> list[Item]:
        """The next `count` <= len(items) items, all different; the counts of items dealt differ by at most 1."""
        if count > len(self.pile):
            left = self.pile
            lap = self.rng.sample(self.items, len(self.items))
            # items left over from the last pass are dealt first, and last in this pass: never twice in one hand
            self.pile = left + sorted(lap, key=lambda item: item in left)
        hand, self.pile = self.pile[:count], self.pile[count:]
        return hand


def check_count(what: str, got: int, low: int, high: int | None = None) -> None:
    """Raises ValueError unless low <= got <= high (no upper bound if high is None)."""
    if got < low or (high is not None and got > high):
        expected = f"{low} or more" if high is None else f"{low} to {high}"
        raise ValueError(f"{what}: got {got}, expected {expected}")
