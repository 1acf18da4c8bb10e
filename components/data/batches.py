"""The batches that data modules hand to stages: tensors only, so that they move between devices."""

from typing import NamedTuple

from torch import Tensor

from components.models.attention.layout import Layout


class LMBatch(NamedTuple):
    """Packed rows for next-token prediction.

    input_ids (B, T); targets (B, T): the token predicted at each place; mask (B, T) bool: True where that
    target counts; num_bytes (): UTF-8 bytes of text that the counted targets stand for.
    """

    input_ids: Tensor
    targets: Tensor
    mask: Tensor
    layout: Layout
    num_bytes: Tensor


class PreferenceBatch(NamedTuple):
    """Packed rankings: every prompt once, its answers continuing it.

    last (N,): flat index (row · T + column) of each answer's last token; prompt_last (N,): that of the last token of
    the prompt that it answers, the place that predicts its first; groups (N,): number of its prompt in
    the batch; ranks (N,) float, lower is better; lengths (N,): tokens of each answer; finished (N,) bool: it
    ends in the end of turn (False where it was cut).
    """

    input_ids: Tensor
    layout: Layout
    last: Tensor
    prompt_last: Tensor
    groups: Tensor
    ranks: Tensor
    lengths: Tensor
    finished: Tensor
