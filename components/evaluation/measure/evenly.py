"""Which records are measured if there are more than are wanted."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def evenly(records: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the records, evenly spaced: the first ones can all be from one source, or about one topic."""
    if len(records) <= count:
        return list(records)
    return [records[int(i)] for i in np.linspace(0, len(records) - 1, count).round()]
