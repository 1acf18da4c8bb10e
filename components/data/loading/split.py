"""Decides which records are held out for validation: by the prompt, never by position or at random."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

FEWEST = 20  # with fewer distinct prompts, none are held out
LOW_BITS = 32  # of a key, which decide on its part; the highest decide whether it is held out


def key(content: Any) -> int:
    """A stable hash below 2^63 of a prompt (messages) or document (string): the same on every machine."""
    text = content if isinstance(content, str) else json.dumps(content, sort_keys=True, ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


def validation_keys(keys: np.ndarray, fraction: float) -> np.ndarray:
    """The distinct keys that are held out, sorted; keys is (N,) int64, in any order and with repeats.

    A key is held out if it is in the first `fraction` of the numbers below 2^63, so a prompt stays on its side when
    others are added or removed. With 20 or more distinct prompts, at least one is held out (the one with the smallest
    key); with fewer, or with fraction 0, none are. Raises ValueError unless 0 <= fraction <= 0.5.
    """
    if not 0 <= fraction <= 0.5:
        raise ValueError(f"val_fraction: got {fraction}, expected a share from 0 to 0.5")
    distinct = np.unique(keys)
    if fraction == 0 or len(distinct) < FEWEST:
        return distinct[:0]
    below = int(np.searchsorted(distinct, int(fraction * 2**63)))
    return distinct[: max(1, below)]


def in_part(keys: np.ndarray, part: Sequence[float] | None) -> np.ndarray:
    """(N,) bool: which of the keys (N,) int64 are in a part of all, [low, high) as shares from 0 to 1; None: all are.

    Parts that do not overlap have no prompt in common, and none depends on what is held out.
    Raises ValueError unless part is two numbers, 0 <= low < high <= 1.
    """
    if part is None:
        return np.ones(len(keys), dtype=bool)
    if len(part) != 2 or not 0 <= part[0] < part[1] <= 1:
        raise ValueError(f"train_part: got {list(part)}, expected two shares [low, high] with 0 <= low < high <= 1")
    place = np.bitwise_and(keys, 2**LOW_BITS - 1) / 2**LOW_BITS
    return (part[0] <= place) & (place < part[1])
