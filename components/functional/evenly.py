"""Which elements are taken if there are more than are wanted."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def evenly(elements: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the elements, evenly spaced: the first records can all be from one source, or about one
    topic."""
    if len(elements) <= count:
        return list(elements)
    return [elements[int(i)] for i in np.linspace(0, len(elements) - 1, count).round()]
