"""Sources of records: files, folders and the Hugging Face Hub, as rows that carry their location.

A row that cannot be read has a FormatError instead of a value, so that it can be reported with file and line, or
skipped and counted. An error that makes a whole source unreadable is a SourceError that names the source and says what
to do.
"""

import functools
import hashlib
import itertools
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from components.data.records import trees
from components.data.records.errors import FormatError, SourceError
from components.data.records.formats import Record
from components.data.sources import hub_datasets
from components.data.sources.csv_rows import csv_rows
from components.data.sources.dataset_folder import Selection, files_of
from components.data.sources.json_rows import json_rows
from components.data.sources.streams import ending, refusal, refuse_head, text_of
from components.system.disk import hash_of_file
from components.system.plain import plain

logger = logging.getLogger(__name__)
LONGEST_PATH = 4096  # bytes, the limit of most systems, which also allow 255 for one name
OnMalformed = Literal["error", "skip"]
EVERYTHING = Selection()


class Row(NamedTuple):
    """One raw record. where: "file:line" or the like; held_out: None lets the split by prompt decide; among: whether
    its file is one of several in a folder; is_file: whether it is the whole contents of a .txt file."""

    where: str
    value: Any
    held_out: bool | None = None
    among: bool = False
    is_file: bool = False


@dataclass(frozen=True)
class Source:
    """A name for reports, a fingerprint (sha256, in hex, of the contents or of what makes them), and the rows."""

    name: str
    fingerprint: Callable[[], str]
    rows: Callable[[], Iterator[Row]]


def open_source(
    path: str,
    name: str | None = None,
    *,
    selection: Selection = EVERYTHING,
    columns: Collection[str] | None = None,
    remedy: str = hub_datasets.LOCAL_COPY,
) -> Source:
    """A file, a folder of files, or a Hub name `owner/name[:config][@revision]`, of which `selection` is read.

    A local path takes precedence over the Hub. A .txt file is one row, with its line breaks (`sample_by="document"` in
    `datasets`). For folders see `dataset_folder`. columns: the only columns of tables to read; None reads all that can
    be read. remedy: the advice in an error if the Hub cannot be reached. Iterating over the rows raises SourceError if
    there are none.
    """
    if selection.files is not None and selection.held_out_split is not None:
        raise SourceError("data.files and data.held_out_split: got both, expected one; files are all for training")
    if not path:
        raise SourceError("data.path: got an empty path, expected a file, a folder or a Hub name")
    place = _place(path)
    if len(os.fsencode(path)) > LONGEST_PATH or "\0" in path:
        raise SourceError(f"{path[:60]!r}…: not a path, expected at most {LONGEST_PATH} bytes and no zero byte")
    if columns is not None and selection.columns:
        columns = {*columns, *selection.columns.values()}
    held_out: list[Path] = []
    if place.is_dir():
        if hub_datasets.NAME.fullmatch(path):
            logger.info("%s: reading the local folder, not a data set with that name on the Hub", path)
        files, held_out = files_of(place, selection)
    elif place.exists():
        files = [place]
        if ending(place) is None:
            raise refusal(place)
        if not place.is_file():
            raise SourceError(f"{place}: not a regular file. Copy its contents to one")
    elif hub_datasets.NAME.fullmatch(path) and ending(place) is None:
        identity = digest(["hub", path, *selection[:4]])
        found = Source(name or path, lambda: identity, lambda: _hub_rows(path, selection, columns, remedy))
        return renamed(found, selection.columns)
    elif "://" in path:
        raise SourceError(f"data.path={path}: URLs are not supported. Set data.path to a local copy, or to a Hub name")
    else:
        raise SourceError(f"{place}: no such file or folder. Set data.path to one that exists")
    found = Source(
        name or place.name,
        lambda: _digest_of_files(files, held_out, place),
        lambda: _split_rows(
            _rows_of_files(files, place, columns), _rows_of_files(held_out, place, columns) if held_out else None
        ),
    )
    return renamed(found, selection.columns)


def given(values: Sequence[Any]) -> Source:
    """Records given as Python values. Raises SourceError for one that JSON cannot represent."""
    rows = [Row(f"records[{number}]", value) for number, value in enumerate(plain(values))]
    try:
        identity = digest([row.value for row in rows])
    except (TypeError, ValueError) as error:
        raise SourceError(f"records: expected what JSON can hold: {error}") from None
    return Source("records", lambda: identity, lambda: iter(rows))


def renamed(source: Source, columns: Mapping[str, str] | None) -> Source:
    """The source with other names for columns. columns: {field: the column whose value it gets}; a column that has a
    field's name already is left out. A row without one of the columns has a FormatError as its value."""
    if not columns:
        return source
    identity = functools.cache(lambda: digest([source.fingerprint(), dict(columns)]))
    return Source(source.name, identity, lambda: (_renamed(row, columns) for row in source.rows()))


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    if not isinstance(row.value, dict):
        return row
    missing = next(((field, column) for field, column in columns.items() if column not in row.value), None)
    if missing:
        got = "columns " + ", ".join(map(repr, row.value)) if row.value else "no columns"
        got = "a .txt file, which has none" if row.is_file else got
        error = FormatError(f'a column "{missing[1]}", which data.columns reads as "{missing[0]}"', got)
        return row._replace(value=error, is_file=False)
    taken = {*columns, *columns.values()}
    others = {name: value for name, value in row.value.items() if name not in taken}
    return row._replace(value=others | {field: row.value[column] for field, column in columns.items()})


def records(
    source: Source, normalize: Callable[[Any], Record], *, on_malformed: OnMalformed, counts: Counter[str]
) -> Iterator[tuple[Row, Record]]:
    """Every row of a source with the record that `normalize` makes of it; the messages of a tree form one row.

    Increments counts["records"] and counts["malformed"]. A malformed row raises SourceError with its location, or is
    skipped with on_malformed="skip"; the first one skipped is logged.
    """
    for row in trees.joined(source.rows()):
        try:
            if isinstance(row.value, FormatError):
                raise row.value
            record = normalize(row.value)
        except FormatError as error:
            refuse(row, error, on_malformed=on_malformed, counts=counts)
            continue
        counts["records"] += 1
        yield row, record


def refuse(row: Row, error: ValueError, *, on_malformed: OnMalformed, counts: Counter[str]) -> None:
    """Counts a row as malformed, or raises SourceError with its location."""
    if on_malformed == "error":
        hint = "Fix it, or skip such records with data.on_malformed=skip"
        hint += "; data.files=… selects which files of the folder are read" if row.among else ""
        raise SourceError(f"{row.where}: {error}. {hint}") from None
    if not counts["malformed"]:
        logger.warning("%s: %s. Skipping this and all further malformed records", row.where, error)
    counts["malformed"] += 1


def digest(value: Any) -> str:
    """sha256 of plain data, in hex, the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def quiet_progress() -> Iterator[None]:
    """Disables the progress bars of `datasets` in a with block."""
    import datasets  # imports pyarrow and pandas, which naming a source does not need

    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _digest_of_files(files: list[Path], held_out: list[Path], root: Path) -> str:
    def each(files: list[Path]) -> list[list[str]]:
        names = [str(file.relative_to(root)) if file != root else "".join(ending(file) or ()) for file in files]
        return [[name, hash_of_file(file)] for name, file in zip(names, files, strict=True)]

    return digest([each(files), each(held_out)] if held_out else each(files))


def _split_rows(training: Iterator[Row], held_out: Iterator[Row] | None) -> Iterator[Row]:
    """Rows of both splits, marked with their split; rows of a single split are left to be split by prompt."""
    if held_out is None:
        yield from training
        return
    for rows, is_held_out in ((training, False), (held_out, True)):
        for row in rows:
            yield row._replace(held_out=is_held_out)


def _place(path: str) -> Path:
    """The path as it was typed, if it exists; otherwise with ~ expanded."""
    place = Path(path)
    try:
        return place if place.exists() else place.expanduser()
    except (OSError, RuntimeError):  # a link to itself; no user with that name
        return place


def _rows_of_files(files: list[Path], place: Path, columns: Collection[str] | None) -> Iterator[Row]:
    readers: dict[str | None, Callable[[Path], Iterator[Row]]] = {
        ".txt": _text_rows,
        ".json": _json_rows,
        ".jsonl": _json_rows,
        ".ndjson": _json_rows,
        ".csv": _csv_rows,
        ".tsv": _csv_rows,
        ".parquet": functools.partial(_table_rows, "parquet", columns),
        ".arrow": functools.partial(_table_rows, "arrow", columns),
    }
    empty = True
    for file in files:
        kind, _ = ending(file) or (None, "")
        for row in readers[kind](file):
            empty = False
            yield row._replace(among=True) if len(files) > 1 else row
    if empty:
        raise SourceError(f"{place}: contains no records. Set data.path to a file or folder that does")


def _text_rows(file: Path) -> Iterator[Row]:
    if text := text_of(file, is_json=False):
        yield Row(str(file), {"text": text}, is_file=True)


def _json_rows(file: Path) -> Iterator[Row]:
    return itertools.starmap(Row, json_rows(file))


def _csv_rows(file: Path) -> Iterator[Row]:
    return itertools.starmap(Row, csv_rows(file))


def _table_rows(kind: Literal["parquet", "arrow"], columns: Collection[str] | None, file: Path) -> Iterator[Row]:
    import pyarrow as pa

    from components.data.sources.columns import arrow_rows, parquet_rows  # takes half a second

    reader = parquet_rows if kind == "parquet" else arrow_rows
    try:
        with file.open("rb") as stream:
            head = stream.read(32)
    except OSError as error:
        raise SourceError(f"{file}: cannot be read ({error.strerror})") from None
    refuse_head(file, head, b"PAR1", b"ARROW1")
    try:
        for number, value in enumerate(reader(file, columns), 1):
            yield Row(f"{file}: row {number}", value)
    except (ValueError, OSError, pa.ArrowException) as error:
        raise SourceError(f"{file}: not a readable {kind} file ({_cause(error)}). Download it again") from None


def _hub_rows(path: str, selection: Selection, columns: Collection[str] | None, remedy: str) -> Iterator[Row]:
    from components.data.sources.columns import BATCH, openable, rows_of

    def rows(split: str) -> Iterator[Row]:
        try:
            with quiet_progress():
                table = hub_datasets.load(path, split, subset=selection.subset, files=selection.files, remedy=remedy)
        except Exception as error:
            raise SourceError(f"{path}: {_cause(error)}") from None
        schema = table.data.schema
        opened = [name for name in openable(schema) if columns is None or name in columns]
        batches = table.select_columns(opened).with_format("arrow").iter(BATCH)
        if not len(table):
            raise SourceError(f"{path}: no records in the split {split}. Set data.split=… to another")
        for number, value in enumerate(rows_of(batches, schema), 1):
            yield Row(f"{path}: row {number} of {split}", value)

    return _split_rows(rows(selection.split), rows(selection.held_out_split) if selection.held_out_split else None)


def _cause(error: BaseException) -> str:
    """The root cause of a chain of errors, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
