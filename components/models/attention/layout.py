"""How documents are packed into rows: the only batch layout for training."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FILLER = -1  # segment of filler
SHORT, STEP = 64, 16  # the length of rows longer than SHORT is rounded up to a multiple of STEP


class Layout(NamedTuple):
    """Which text each token of packed rows belongs to; each field is (B, T) int64.

    positions: the token's position in its own text, counted from the start of the trunk that it continues.
    segments:  number of the token's segment in the row; -1 for filler at the end of a row.
    parents:   number of the segment that the token's segment continues (its prompt), -1 if it continues none.

    Token i attends to token j of its row iff j <= i and j is in i's segment or in the segment that i's continues.
    """

    positions: Tensor
    segments: Tensor
    parents: Tensor

    @property
    def real(self) -> Tensor:
        """(B, T) bool: True on tokens, False on filler."""
        return self.segments != FILLER

    def lengths(self) -> Tensor:
        """(B, T) int64: number of tokens in each token's segment; on filler, of filler in the row."""
        numbers = self.segments - FILLER
        counts = torch.zeros_like(numbers).scatter_add(1, numbers, torch.ones_like(numbers))
        return counts.gather(1, numbers)

    def allowed(self) -> Tensor:
        """(B, T, T) bool: [b, i, j] True where token i can attend to token j."""
        same = self.segments[:, :, None] == self.segments[:, None, :]
        continued = (self.parents[:, :, None] == self.segments[:, None, :]) & (self.parents >= 0)[:, :, None]
        length = self.segments.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.segments.device).tril()
        return (same | continued) & causal


class Packed(NamedTuple):
    """Documents packed into rows. spans[d][s] = (flat start in B*T, length) of segment s of document d."""

    input_ids: Tensor
    layout: Layout
    spans: list[list[tuple[int, int]]]


def pack(documents: Sequence[Sequence[Sequence[int]]], *, row_length: int, filler: int) -> Packed:
    """Packs documents into rows by first-fit decreasing, with no document split over two rows.

    A document is a list of segments. The first is the trunk (a text, a dialogue, a prompt). Each other segment
    continues the trunk: it attends to it and its positions start at the trunk's length, but it does not see the others.
    All rows are as long as the fullest, if longer than SHORT rounded up to a multiple of STEP (at most row_length):
    kernels are compiled and cached per shape, so new shapes at every step would use ever more memory. `filler` is the
    token id at the end of rows.
    Raises ValueError for no document, an empty trunk, or a document longer than row_length tokens.
    """
    if not documents:
        raise ValueError("pack: expected at least one document, got none")
    lengths = [sum(map(len, document)) for document in documents]
    if max(lengths) > row_length:
        raise ValueError(f"pack: a document of {max(lengths)} tokens does not fit in a row of {row_length}")
    if any(not document[0] for document in documents):
        raise ValueError("pack: a document's first segment is empty")
    rows = _first_fit_decreasing(lengths, row_length)
    width = max(sum(lengths[d] for d in row) for row in rows)
    width = min(-(-width // STEP) * STEP, row_length) if width > SHORT else width
    ids = torch.full((len(rows), width), filler, dtype=torch.int64)
    positions = torch.zeros_like(ids)
    segments = torch.full_like(ids, FILLER)
    parents = torch.full_like(ids, -1)
    spans: list[list[tuple[int, int]]] = [[] for _ in documents]
    for r, row in enumerate(rows):
        column = number = 0
        for d in row:
            trunk = number
            for s, segment in enumerate(documents[d]):
                columns = slice(column, column + len(segment))
                first_position = len(documents[d][0]) if s else 0
                ids[r, columns] = torch.as_tensor(segment, dtype=torch.int64)
                positions[r, columns] = torch.arange(first_position, first_position + len(segment))
                segments[r, columns] = number
                parents[r, columns] = trunk if s else -1
                spans[d].append((r * width + column, len(segment)))
                column += len(segment)
                number += 1
    return Packed(ids, Layout(positions, segments, parents), spans)


def _first_fit_decreasing(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Document numbers by row: the longest document first, each in the first row that has room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for d in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for r, free in enumerate(room):
            if lengths[d] <= free:
                rows[r].append(d)
                room[r] -= lengths[d]
                break
        else:
            rows.append([d])
            room.append(row_length - lengths[d])
    return rows
