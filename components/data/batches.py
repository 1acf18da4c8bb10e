"""The batches that data modules pass to stages; they contain only tensors, so they can move between devices."""

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from components.models.attention.layout import Layout

Batch = TypeVar("Batch", bound=tuple[Any, ...])


class LMBatch(NamedTuple):
    """Packed rows for next-token prediction.

    input_ids (B, T); targets (B, T): the token to predict at each position; mask (B, T) bool: True where that target
    counts; num_bytes (): UTF-8 bytes of the text of the counted targets.
    """

    input_ids: Tensor
    targets: Tensor
    mask: Tensor
    layout: Layout
    num_bytes: Tensor


class PreferenceBatch(NamedTuple):
    """Packed rankings: every prompt once, its answers continuing it.

    last (N,): flat index (row · T + column) of each answer's last token; prompt_last (N,): that of its prompt's last
    token, the position that predicts the answer's first token; groups (N,): index of its prompt in the batch; ranks
    (N,) float, lower is better; lengths (N,): tokens of each answer; finished (N,) bool: whether it ends in the end of
    turn (False if it was cut).
    """

    input_ids: Tensor
    layout: Layout
    last: Tensor
    prompt_last: Tensor
    groups: Tensor
    ranks: Tensor
    lengths: Tensor
    finished: Tensor


def moved_to(device: torch.device, batch: Batch) -> Batch:
    """A NamedTuple of tensors and layouts, or a layout, on a device."""
    fields: Any = (field.to(device) if isinstance(field, Tensor) else moved_to(device, field) for field in batch)
    return type(batch)(*fields)
