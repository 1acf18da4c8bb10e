"""Records of tables as text, CSV and TSV, one row in memory at a time.

Every value is a string, as it is written: "42" can be an answer. Only messages, as JSON, are read as such. An empty
cell has no value.
"""

import contextlib
import csv
import io
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from components.data.records.errors import FormatError, SourceError
from components.data.records.spelling import are_messages, is_message
from components.data.records.strict_json import parsed
from components.data.sources.streams import encoding_of, ending, opened

DELIMITERS = (",", ";", "\t")  # of .csv
FIRST = 20  # lines that tell which of them


def csv_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """(location, value) of each row; a row that does not fit the header has a FormatError as its value.

    The first row names the columns; one without a name, as pandas writes for row numbers, is left out, as are rows of
    empty cells. A cell in double quotes can contain delimiters, line ends, and double quotes written twice. Raises
    SourceError with the line for a column named twice, and for quotes or bytes that cannot be read.
    """
    csv.field_size_limit(sys.maxsize)
    line = 1  # of the row that is read next
    try:
        with opened(file) as stream:
            encoding = encoding_of(stream.peek(4)[:4])  # type: ignore[attr-defined]
            text = io.TextIOWrapper(stream, encoding, newline="")
            first = list(islice(text, FIRST))
            is_tsv = (ending(file) or ("", ""))[0] == ".tsv"
            delimiter = "\t" if is_tsv else _delimiter(first)
            reader = csv.reader(chain(first, text), delimiter=delimiter, strict=True)
            header = _header(file, next(reader, []))
            line = reader.line_num + 1
            for cells in reader:
                if any(cells):
                    yield f"{file}:{line}", _row(header, cells)
                line = reader.line_num + 1
    except csv.Error as error:
        advice = "Write double quotes within a cell twice, and put such a cell in double quotes"
        raise SourceError(f"{file}:{line}: expected cells separated by {delimiter!r}, got {error}. {advice}") from None
    except UnicodeDecodeError as error:
        expected = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
        got = f"byte 0x{error.object[error.start]:02x}" if error.start < len(error.object) else error.reason
        advice = f"Convert it, for example with: iconv -f cp1252 -t utf-8 {file.name}"
        raise SourceError(f"{file}: expected {expected}, got {got} in or after line {line}. {advice}") from None


def _delimiter(lines: list[str]) -> str:
    """The delimiter that splits most lines into as many cells as the header; of several, the first in DELIMITERS."""

    def alike(delimiter: str) -> int:
        widths = [len(cells) for cells in csv.reader(lines, delimiter=delimiter)]
        return widths.count(widths[0]) if widths and widths[0] > 1 else 0

    return max(DELIMITERS, key=alike)


def _header(file: Path, names: list[str]) -> list[str]:
    names = [name.strip() for name in names]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise SourceError(f"{file}:1: two columns are named {', '.join(twice)}. Rename one")
    return names


def _row(header: list[str], cells: list[str]) -> Any:
    if len(cells) != len(header):
        return FormatError(f"{len(header)} cells, like the first row", f"{len(cells)}")
    return {name: _value(cell) if cell else None for name, cell in zip(header, cells, strict=True) if name}


def _value(cell: str) -> Any:
    with contextlib.suppress(FormatError):
        if are_messages(value := parsed(cell, "")) or is_message(value):
            return value
    return cell
