"""The batches that data modules pass to stages; they contain only tensors, so they can move between devices."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from components.models.attention.layout import Layout, pack

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


class WithText(NamedTuple):
    """A minibatch of experience and a batch of text for the same update.

    step_weights (2,): response tokens and counted text tokens of the whole optimizer step; None if it has one batch.
    """

    minibatch: Any
    text: LMBatch
    step_weights: Tensor | None = None


class UnpairedBatch(NamedTuple):
    """Packed records of one labeled answer each: every prompt once, continued by its answer and by one to another
    prompt.

    last, prompt_last, lengths (2N,): as in PreferenceBatch, an answer and its mismatched one in turns; desirable (N,)
    bool: the label of each answer.
    """

    input_ids: Tensor
    layout: Layout
    last: Tensor
    prompt_last: Tensor
    lengths: Tensor
    desirable: Tensor


def packed_answers(documents: Sequence[Sequence[Sequence[int]]], *, context: int, filler: int) -> dict[str, Any]:
    """The fields input_ids, layout, last, prompt_last and lengths of a batch of documents, each a prompt and its
    answers.

    A document longer than context makes the rows longer: its answers do not see each other.
    """
    longest = max(sum(map(len, document)) for document in documents)
    rows = pack(documents, row_length=max(context, longest), filler=filler)
    answers = [span for spans in rows.spans for span in spans[1:]]
    prompts = [spans[0] for spans in rows.spans for _ in spans[1:]]
    return {
        "input_ids": rows.input_ids,
        "layout": rows.layout,
        "last": torch.tensor([start + length - 1 for start, length in answers]),
        "prompt_last": torch.tensor([start + length - 1 for start, length in prompts]),
        "lengths": torch.tensor([length for _, length in answers]),
    }


def moved_to(device: torch.device, batch: Batch) -> Batch:
    """A NamedTuple of tensors and layouts, or a layout, on a device."""
    fields: Any = (field.to(device) if isinstance(field, Tensor) else moved_to(device, field) for field in batch)
    return type(batch)(*fields)
