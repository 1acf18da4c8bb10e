"""Sums of two numbers from 0 to 99: problems as chats, and the reward that checks an answer."""

import random
from collections.abc import Sequence
from typing import Any

SYSTEM = "Answer with the number alone."
RANGES = ((0, 10), (10, 100))  # numbers of one digit are as frequent as those of two


def problems(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`count` different problems as {"prompt": messages, "answer": string}; more of the same seed begin with the same.

    Raises ValueError if there are not as many.
    """
    if count > 10_000:
        raise ValueError(f"expected at most 10,000 problems, got {count}: there are no more pairs of numbers")
    numbers, asked = random.Random(seed), dict[tuple[int, int], None]()
    while len(asked) < count:
        first, second = (numbers.randrange(*numbers.choice(RANGES)) for _ in range(2))
        asked[first, second] = None
    return [
        {
            "prompt": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": f"Calculate {first} + {second}."},
            ],
            "answer": str(first + second),
        }
        for first, second in asked
    ]


def exact(completions: Sequence[Any], answer: Sequence[str], **columns: Any) -> list[float]:
    """1 for a response that is the answer and nothing else, white space around it aside; 0 for any other."""
    return [float(message["content"].strip() == right) for [message], right in zip(completions, answer, strict=True)]
