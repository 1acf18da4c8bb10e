"""How documents lie in packed rows: the one batch layout for training."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FILLER = -1  # segment of a place that holds no token
SHORT, STEP = 64, 16  # rows longer than SHORT have a multiple of STEP as their length


class Layout(NamedTuple):
    """Where every token of packed rows belongs; each field is (B, T) int64.

    positions: the token's place in its own text, counted through the trunk it continues.
    segments:  number of the segment inside the row; -1 for filler at a row's end.
    parents:   segment that this token's segment continues (its prompt), -1 where it continues none.

    Token i may attend to token j of its row iff j <= i and j is in i's segment or in the segment i's continues.
    """

    positions: Tensor
    segments: Tensor
    parents: Tensor

    @property
    def real(self) -> Tensor:
        """(B, T) bool: True where a token lies."""
        return self.segments != FILLER

    def allowed(self) -> Tensor:
        """(B, T, T) bool: [b, i, j] True where token i may attend to token j."""
        same = self.segments[:, :, None] == self.segments[:, None, :]
        continued = (self.parents[:, :, None] == self.segments[:, None, :]) & (self.parents >= 0)[:, :, None]
        length = self.segments.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.segments.device).tril()
        return (same | continued) & causal


class Packed(NamedTuple):
    """Rows made of documents. spans[d][s] = (flat start in B*T, length) of segment s of document d."""

    input_ids: Tensor
    layout: Layout
    spans: list[list[tuple[int, int]]]


def pack(documents: Sequence[Sequence[Sequence[int]]], *, row_length: int, filler: int) -> Packed:
    """Packs documents into as few rows as first-fit decreasing finds, none split over two rows.

    A document is a list of segments: the first is the trunk (a text, a dialogue, a prompt), the others each
    continue the trunk: they attend to it and their positions go on from its length, but do not see each other.
    Rows are as long as the fullest of them, beyond SHORT rounded up to a multiple of STEP (at most row_length):
    kernels are made and kept for each shape, and a run with a new one every step would grow. `filler` is the id
    written at the end of rows.
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
                place = slice(column, column + len(segment))
                first_position = len(documents[d][0]) if s else 0
                ids[r, place] = torch.as_tensor(segment, dtype=torch.int64)
                positions[r, place] = torch.arange(first_position, first_position + len(segment))
                segments[r, place] = number
                parents[r, place] = trunk if s else -1
                spans[d].append((r * width + column, len(segment)))
                column += len(segment)
                number += 1
    return Packed(ids, Layout(positions, segments, parents), spans)


def _first_fit_decreasing(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Document numbers by row: the longest first, each in the first row that has room."""
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
