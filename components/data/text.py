"""Text for next-token prediction: documents in one stream, chopped into rows."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from components.data.base import RecordData
from components.data.batches import LMBatch
from components.data.loading.cache import Ragged, Table
from components.data.records import formats
from components.data.records.formats import Record
from components.data.sources.source import Row, Source
from components.models.attention.layout import FILLER, Layout

BLANK_LINES = r"\n(?:[^\S\n]*\n)+"


class TextData(RecordData):
    """Documents `{"text"}` as LMBatch; batch_size counts rows of `context` tokens.

    Shuffled training documents form one stream, each with its end of document; row r predicts tokens r·context + 1 …
    (r + 1)·context of it from the preceding ones. So every token except a document's first is a target exactly once per
    pass. Rows have one segment per document: neither attention nor targets cross a boundary. longest_document:
    characters; a longer text is cut at line ends into parts of at most this length (very long strings are slow to
    tokenize, and a text in a single file still has parts to hold out). Each part is a document, but only the first has
    a beginning and only the last an end of document; counts["cut"] such texts.
    split_at: for .txt files, the regular expression between two documents, by default blank lines; each part with more
    than white space is a document, so a single file (a book) has parts to hold out. None: a file is a document.
    document_start: for data whose rows are lines, the regular expression that matches the first line of a document; the
    lines up to the next match belong to it. None: a row is a document.
    num_documents: of the built-in world.
    """

    normalize = staticmethod(formats.text)
    features = {"ids": pa.list_(pa.int32())}
    read_columns = ("text", "content")

    def __init__(
        self,
        *,
        num_documents: int = 12000,
        longest_document: int = 20000,
        document_start: str | None = None,
        split_at: str | None = BLANK_LINES,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if longest_document < 1:
            raise ValueError(f"longest_document: got {longest_document} characters, expected at least 1")
        self.longest_document, self.num_documents = longest_document, num_documents
        self.document_start = document_start
        try:
            self.split_at = None if split_at is None else re.compile(split_at)
        except re.error as error:
            raise ValueError(f"split_at: {split_at!r} is not a regular expression: {error}") from None

    def settings(self) -> dict[str, Any]:
        return {"longest_document": self.longest_document, "document_start": self.document_start} | (
            {"split_at": self.split_at.pattern} if self.split_at is not None else {}
        )

    def split_by(self, record: Record) -> str:
        return record["text"]

    def record_texts(self, record: Record) -> list[str]:
        return [record["text"]]

    def records_of(self, source: Source, counts: Counter[str]) -> Iterator[tuple[Row, Record]]:
        if self.document_start is not None and not self.is_builtin:
            start = self.document_start
            source = replace(source, rows=lambda rows=source.rows: joined_lines(rows(), start))  # type: ignore[misc]
        if self.split_at is not None:
            pattern = self.split_at
            source = replace(source, rows=lambda rows=source.rows: parts_of_files(rows(), pattern))  # type: ignore[misc]
        for row, record in super().records_of(source, counts):
            parts = list(cut_at_lines(record["text"], self.longest_document))
            if len(parts) > 1:
                counts["cut"] += 1
            for i, part in enumerate(parts):
                yield row, {"text": part, "begins": i == 0, "ends": i == len(parts) - 1}

    def tokenize(self, record: Record, counts: Counter[str]) -> list[dict[str, Any]]:
        ids = self.tokenizer.document(record["text"])
        first = 0 if record["begins"] else len(self.tokenizer.beginning)
        ids = ids[first : len(ids) if record["ends"] else -1]
        return [{"ids": ids, "tokens": len(ids)}]

    def arrange(self, tables: list[Table], train: np.ndarray, held_out: np.ndarray) -> None:
        documents = [Ragged(table, "ids") for table in tables]
        self.train_examples = TextRows(documents, train, self.context)
        self.val_examples = TextRows(documents, held_out, self.context)
        self.byte_lengths = torch.tensor(self.tokenizer.byte_lengths)

    def collate(self, examples: list[tuple[np.ndarray, np.ndarray]]) -> LMBatch:
        shape = (len(examples), self.context)
        ids, targets = (np.full(shape, self.tokenizer.pad_id, dtype=np.int64) for _ in range(2))
        positions = np.zeros(shape, dtype=np.int64)
        segments = np.full(shape, FILLER, dtype=np.int64)
        mask = np.zeros(shape, dtype=bool)
        for b, (tokens, documents) in enumerate(examples):
            length = len(tokens) - 1
            here = documents[:-1] - documents[0]
            ids[b, :length], segments[b, :length] = tokens[:-1], here
            starts = np.flatnonzero(np.diff(here, prepend=-1))  # where each document starts in the row
            positions[b, :length] = np.arange(length) - starts[here]
            mask[b, :length] = documents[1:] == documents[:-1]
            targets[b, mask[b]] = tokens[1:][mask[b, :length]]
        layout = Layout(*map(torch.from_numpy, (positions, segments, np.full(shape, -1, dtype=np.int64))))
        target_ids, is_target = torch.from_numpy(targets), torch.from_numpy(mask)
        num_bytes = self.byte_lengths[target_ids[is_target]].sum()
        return LMBatch.of(torch.from_numpy(ids), target_ids, is_target, layout, num_bytes)


class TextRows:
    """Rows of a stream of documents, each made on access, in time that depends only on its length.

    documents[s]: token lists of source s; order (M, 2): [source, document] of the stream. Item r is (tokens, index of
    each token's document in the stream): context + 1 tokens, in the last row possibly fewer, at least 2.
    """

    lengths = None  # all rows count as equally long

    def __init__(self, documents: list[Ragged], order: np.ndarray, context: int) -> None:
        self.documents, self.order, self.context = documents, order, context
        lengths = np.zeros(len(order), dtype=np.int64)
        for s, source in enumerate(documents):
            lengths[order[:, 0] == s] = source.lengths[order[order[:, 0] == s, 1]]
        self.ends = np.cumsum(lengths)  # of each document in the stream
        self.num_tokens = int(self.ends[-1]) if len(order) else 0

    def __len__(self) -> int:
        return -(-(self.num_tokens - 1) // self.context) if self.num_tokens else 0

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        start = row * self.context
        stop = min(start + self.context + 1, self.num_tokens)
        first = int(np.searchsorted(self.ends, start, side="right"))
        parts, numbers = [], []
        for number in range(first, int(np.searchsorted(self.ends, stop)) + 1):
            source, document = self.order[number]
            ids = self.documents[source][document]
            begin = int(self.ends[number]) - len(ids)
            part = ids[max(start - begin, 0) : stop - begin]
            parts.append(part)
            numbers.append(np.full(len(part), number))
        return np.concatenate(parts).astype(np.int64), np.concatenate(numbers)


def joined_lines(rows: Iterator[Row], start: str) -> Iterator[Row]:
    """Joins rows {"text": line} into documents, each at the row of its first line, which `start` matches in full.

    A row of another shape, or on the other side of the split, ends the document before it.
    """

    def line_of(row: Row) -> str | None:
        return row.value["text"] if isinstance(row.value, dict) and isinstance(row.value.get("text"), str) else None

    pattern, number, held_out = re.compile(start), 0, None

    def document_of(row: Row) -> int:
        nonlocal number, held_out
        line = line_of(row)
        number += line is None or row.held_out != held_out or pattern.fullmatch(line.rstrip("\n")) is not None
        held_out = row.held_out
        return number

    for _, group in itertools.groupby(rows, key=document_of):
        first = next(group)
        lines = [line_of(row) for row in (first, *group)]
        if lines[0] is not None:
            text = "".join(line if line.endswith("\n") else f"{line}\n" for line in lines if line is not None)
            first = first._replace(value={"text": text})
        yield first


def parts_of_files(rows: Iterator[Row], between: re.Pattern[str]) -> Iterator[Row]:
    """Splits rows that are whole .txt files where `between` matches, dropping blank parts; keeps other rows."""
    for row in rows:
        parts = filter(str.strip, _between(row.value["text"], between)) if row.is_file else iter(())
        first_two = list(itertools.islice(parts, 2))
        if len(first_two) < 2:
            yield row
            continue
        for number, text in enumerate(itertools.chain(first_two, parts), 1):
            yield row._replace(where=f"{row.where}: part {number}", value={"text": text})


def _between(text: str, pattern: re.Pattern[str]) -> Iterator[str]:
    """The parts between matches of the pattern, one at a time: a list of them would need as much memory as the text."""
    start = 0
    for match in pattern.finditer(text):
        yield text[start : match.start()]
        start = match.end()
    yield text[start:]


def cut_at_lines(text: str, longest: int) -> Iterator[str]:
    """Parts of at most `longest` characters that concatenate to the text; cut after a line end if there is one."""
    start = 0
    while len(text) - start > longest:
        end = text.rfind("\n", start, start + longest) + 1 or start + longest
        yield text[start:end]
        start = end
    yield text[start:]
