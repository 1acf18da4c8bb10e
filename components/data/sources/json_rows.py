"""Records in the usual forms of JSON: one per line, over several lines, in a list, under "data", or in columns."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.data.records.errors import FormatError, SourceError
from components.data.records.strict_json import DECODER, what_is_wrong
from components.data.sources.streams import lines, text_of

ENVELOPES = ("data", "rows", "records", "examples", "instances")  # fields that can contain a file's records
LOOKED_AT = 100  # lines to examine, to see if they are records
_BLANK = b" \t\f\v\xef\xbb\xbf"
_GAP = re.compile("[ \t\r\n\f\v\ufeff]*")


def json_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """(location, value) of each record in a file; a line that is not JSON has a FormatError as its value.

    Objects follow each other, on separate lines or the same one, or are the items of one list; a comma after any of
    them is accepted. A single object can contain all records: as a list in a field of `ENVELOPES`, or as columns, lists
    of equal length under their names (also as pandas writes them: objects by row number). Raises SourceError with the
    line if JSON over several lines is broken.
    """
    numbered = ((number, line) for number, line in enumerate(lines(file), 1) if line.strip(_BLANK))
    start = list(itertools.islice(numbered, LOOKED_AT))
    first = start[0][1].removeprefix(b"\xef\xbb\xbf").strip() if start else b""
    if first.startswith(b"["):
        for number, (_, value) in enumerate(_of_text(file), 1):
            yield f"{file}: record {number}", value
        return
    rows = _over_lines(file, start) if len(start) > 1 and _is_open(first) else None
    if rows is None:
        rows = _of_lines(file, itertools.chain(start, numbered))
    first_two = list(itertools.islice(rows, 2))
    records = _contained(first_two[0][1]) if len(first_two) == 1 else None
    if records is None:
        yield from itertools.chain(first_two, rows)
        return
    for number, value in enumerate(records, 1):
        yield f"{file}: record {number}", value


def _of_lines(file: Path, numbered: Iterator[tuple[int, bytes]]) -> Iterator[tuple[str, Any]]:
    for number, line in numbered:
        for value in _values(line):
            yield f"{file}:{number}", value


def _over_lines(file: Path, start: list[tuple[int, bytes]]) -> Iterator[tuple[str, Any]] | None:
    """The values of a file whose first line starts one that spans lines; None if that fails and later lines are
    objects, in which case only the first line is broken."""
    rows = ((f"{file}:{line}", value) for line, value in _of_text(file))
    try:
        return itertools.chain([next(rows)], rows)
    except SourceError:
        if any(line.startswith(b"{") and _is_object(line) for _, line in start[1:]):
            return None
        raise


def _is_open(line: bytes) -> bool:
    """Whether a line starts JSON that ends on a later one: it is valid as far as it goes."""
    try:
        return not list(_scanned(line.decode(), in_list=False))
    except json.JSONDecodeError as error:
        return error.pos >= len(error.doc)
    except (ValueError, RecursionError):
        return False


def _is_object(line: bytes) -> bool:
    return all(isinstance(value, dict) for value in _values(line))


def _values(line: bytes) -> list[Any]:
    """The values on a line, or the error in it."""
    try:
        return [value for _, value in _scanned(line.decode(), in_list=False)]
    except UnicodeDecodeError as error:
        problem = FormatError("UTF-8", f"byte 0x{line[error.start]:02x} at column {error.start + 1}")
    except json.JSONDecodeError as error:
        start = line[:30].decode("utf-8", "replace").strip()
        problem = FormatError("one JSON object", f"{start!r} ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:
        problem = FormatError("one JSON object", what_is_wrong(error))
    return [problem]


def _of_text(file: Path) -> Iterator[tuple[int, Any]]:
    """(line, value) of a file that is read at once."""
    text = text_of(file, is_json=True)
    position = _past_gap(text, 0)
    in_list = text.startswith("[", position)
    line, counted = 1, 0
    try:
        for start, value in _scanned(text, position + in_list, in_list=in_list):
            line, counted = line + text.count("\n", counted, start), start
            yield line, value
    except json.JSONDecodeError as error:
        got = f"an error: {error.msg} at column {error.colno}"
        raise SourceError(f"{file}:{error.lineno}: expected JSON, got {got}") from None
    except (ValueError, RecursionError) as error:  # a number or a nesting without end
        raise SourceError(f"{file}: expected JSON, got {what_is_wrong(error)}") from None


def _past_gap(text: str, position: int) -> int:
    gap = _GAP.match(text, position)
    return gap.end() if gap else position


def _scanned(text: str, position: int = 0, *, in_list: bool) -> Iterator[tuple[int, Any]]:
    """(position, value) of successive values, with an optional comma after each; in a list it is required, up to ]."""
    while True:
        position = _past_gap(text, position)
        if in_list and text.startswith("]", position):
            end = _past_gap(text, position + 1)
            if end < len(text):
                raise json.JSONDecodeError("Extra data after the list", text, end)
            return
        if position == len(text) and not in_list:
            return
        start = position
        value, position = DECODER.raw_decode(text, start)
        yield start, value
        position = _past_gap(text, position)
        if text.startswith(",", position):
            position += 1
        elif in_list and not text.startswith("]", position):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, position)


def _contained(value: Any) -> list[Any] | None:
    """The records that one object contains; None if it is a record itself."""
    if not isinstance(value, dict) or not value:
        return None
    lists = [name for name, field in value.items() if isinstance(field, list) and field and isinstance(field[0], dict)]
    if len(lists) == 1 and lists[0] in ENVELOPES:
        return value[lists[0]]
    columns = list(value.values())
    if all(isinstance(column, dict) and column and all(map(str.isdigit, column)) for column in columns):
        if any(column.keys() != columns[0].keys() for column in columns):
            return None
        columns = [list(column.values()) for column in columns]
    elif lists or not all(isinstance(column, list) and column for column in columns):
        return None
    if len(set(map(len, columns))) > 1:
        return None
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
