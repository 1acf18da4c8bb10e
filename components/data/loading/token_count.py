"""Counting the tokens of a batch of any stage."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from components.models.attention.layout import Layout


def real_tokens(batch: Any) -> Tensor | None:
    """The number of tokens in a batch, without filler: a () int64 tensor on the batch's device.

    Looks for a Layout in the fields of a NamedTuple or mapping at any depth, and adds up the counts; None if there is
    none.
    """
    if isinstance(batch, Layout):
        return batch.real.sum()
    if isinstance(batch, Mapping):
        batch = tuple(batch.values())
    if not isinstance(batch, tuple):
        return None
    counts = [count for field in batch if (count := real_tokens(field)) is not None]
    return sum(counts[1:], counts[0]) if counts else None
