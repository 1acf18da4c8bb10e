"""The batches that data modules pass to stages; they contain only tensors, so they can move between devices.

What a loss selects from them by a mask or a comparison is listed as indices, which `of` makes from the other fields
while they are on the CPU: a shape that depends on data would make a GPU's host wait for it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from components.functional.losses import RankedPairs, ranking_pairs
from components.functional.masking import true_places
from components.models.attention.layout import Layout, pack

Batch = TypeVar("Batch", bound=tuple[Any, ...])


class LMBatch(NamedTuple):
    """Packed rows for next-token prediction.

    input_ids (B, T); targets (B, T): the token to predict at each position; mask (B, T) bool: True where that target
    counts; num_bytes (): UTF-8 bytes of the text of the counted targets; counted (n,): flat index (row · T + column) of
    each of them.
    """

    input_ids: Tensor
    targets: Tensor
    mask: Tensor
    layout: Layout
    num_bytes: Tensor
    counted: Tensor

    @classmethod
    def of(cls, input_ids: Tensor, targets: Tensor, mask: Tensor, layout: Layout, num_bytes: Tensor) -> Self:
        """The batch of all fields but counted."""
        return cls(input_ids, targets, mask, layout, num_bytes, true_places(mask))


class AnswerTokens(NamedTuple):
    """The n tokens of N answers, answer by answer; L: tokens of the longest.

    indices, sources (n,): flat index (row · T + column) of each token, and of the token that predicts it; places (n,):
    its flat index in a matrix (N, L) of a row per answer; mask (N, L) bool: True on those places.
    """

    indices: Tensor
    sources: Tensor
    places: Tensor
    mask: Tensor

    @classmethod
    def of(cls, last: Tensor, prompt_last: Tensor, lengths: Tensor) -> Self:
        """The tokens of answers with these fields (N,) of a PreferenceBatch."""
        steps = torch.arange(int(lengths.max()))
        mask = steps < lengths[:, None]
        indices = (last - lengths + 1)[:, None] + steps
        sources = torch.where(steps == 0, prompt_last[:, None], indices - 1)
        return cls(indices[mask], sources[mask], true_places(mask), mask)


class PreferenceBatch(NamedTuple):
    """Packed rankings: every prompt once, its answers continuing it.

    last (N,): flat index (row · T + column) of each answer's last token; prompt_last (N,): that of its prompt's last
    token, the position that predicts the answer's first token; groups (N,): index of its prompt in the batch; ranks
    (N,) float, lower is better; lengths (N,): tokens of each answer; finished (N,) bool: whether it ends in the end of
    turn (False if it was cut); answers: the tokens of all answers; pairs: of answers that differ in rank.
    """

    input_ids: Tensor
    layout: Layout
    last: Tensor
    prompt_last: Tensor
    groups: Tensor
    ranks: Tensor
    lengths: Tensor
    finished: Tensor
    answers: AnswerTokens
    pairs: RankedPairs

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """The batch of all fields but answers and pairs."""
        answers = AnswerTokens.of(fields["last"], fields["prompt_last"], fields["lengths"])
        return cls(**fields, answers=answers, pairs=ranking_pairs(fields["ranks"], fields["groups"]))


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

    last, prompt_last, lengths (2N,), answers: as in PreferenceBatch, an answer and its mismatched one in turns;
    desirable (N,) bool: the label of each answer.
    """

    input_ids: Tensor
    layout: Layout
    last: Tensor
    prompt_last: Tensor
    lengths: Tensor
    desirable: Tensor
    answers: AnswerTokens

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """The batch of all fields but answers."""
        return cls(**fields, answers=AnswerTokens.of(fields["last"], fields["prompt_last"], fields["lengths"]))


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
