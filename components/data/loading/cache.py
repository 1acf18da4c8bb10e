"""Tokenized records on disk: made once per source, tokenizer and settings, then memory-mapped."""

import fcntl
import itertools
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from components.system.disk import read_json, write_json

VERSION = 9  # increment it whenever the code makes different tokens or columns from the same records
BATCH = 1000  # rows of a chunk of the file
_ROWS, _COUNTS = "rows.arrow", "counts.json"
PREFIX = ".making-"


class Table:
    """The rows of an Arrow file, mapped into memory: what is not read takes none. table[i]: a row, by column."""

    def __init__(self, file: Path) -> None:
        self._file = file
        with pa.memory_map(str(file)) as mapped:
            self._rows = pa.ipc.open_file(mapped).read_all()

    def __len__(self) -> int:
        return self._rows.num_rows

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {name: self.column(name)[row].as_py() for name in self._rows.column_names}

    def column(self, name: str) -> pa.ChunkedArray:
        return self._rows.column(name)

    def numbers(self, name: str) -> np.ndarray:
        """(N,) the values of a column of numbers."""
        return self.column(name).to_numpy()

    def __reduce__(self) -> tuple[type["Table"], tuple[Path]]:
        return Table, (self._file,)  # another process maps the file as well


def numbers_at(tables: Sequence[Table], name: str, places: np.ndarray) -> np.ndarray:
    """(M,) the values of a column of numbers at (M, 2) [[source, row], …]."""
    columns = [table.numbers(name) for table in tables]
    firsts = np.cumsum([0, *map(len, columns)])
    return np.concatenate(columns)[firsts[places[:, 0]] + places[:, 1]]


def stored(
    folder: str | Path,
    key: str,
    make: Callable[[Counter[str]], Iterator[dict[str, Any]]],
    columns: Mapping[str, pa.DataType],
) -> tuple[Table, Counter[str]]:
    """The table named `key` in a folder, and the counts from when it was made; columns: its names and types.

    If it does not exist, makes it from the rows of `make(counts)` under a temporary name and renames it, so that a
    half-written one is never read and one of two processes wins. Memory use does not depend on the number of rows.
    Raises what `make` raises, and LookupError if it yields no rows.
    """
    final = Path(folder) / key
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(final.parent)
    if not final.exists():
        with _scratch(final.parent) as scratch:
            _make(scratch / "done", make, pa.schema(columns))
            try:
                (scratch / "done").rename(final)
            except OSError:  # another process was first
                if not final.exists():
                    raise
    return Table(final / _ROWS), Counter(read_json(final / _COUNTS))


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A temporary folder, locked while in use and then removed; a lock ends with its process, however that ends."""
    with _opened(folder) as entrance:
        fcntl.flock(entrance, fcntl.LOCK_EX)
        scratch = Path(tempfile.mkdtemp(dir=folder, prefix=PREFIX))
        lock = os.open(scratch, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def _remove_abandoned(folder: Path) -> None:
    """Removes temporary folders that are not locked: those of killed processes."""
    with _opened(folder) as entrance:
        fcntl.flock(entrance, fcntl.LOCK_EX)  # no process sees a folder that exists but is not locked yet
        for other in folder.glob(f"{PREFIX}*"):
            if _is_abandoned(other):
                shutil.rmtree(other, ignore_errors=True)


def _is_abandoned(scratch: Path) -> bool:
    try:
        with _opened(scratch) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _make(folder: Path, make: Callable, schema: pa.Schema) -> None:
    counts: Counter[str] = Counter()
    rows = make(counts)
    folder.mkdir()
    empty = True
    with pa.OSFile(str(folder / _ROWS), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        while batch := list(itertools.islice(rows, BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
            empty = False
    if empty:
        raise LookupError(f"no usable records (counts: {dict(counts)})")
    write_json(folder / _COUNTS, counts)


class Ragged:
    """A column of lists of numbers in a memory-mapped table: item i is a view of the file."""

    def __init__(self, table: Table, column: str):
        chunks = table.column(column).chunks
        self._flat = [chunk.values.to_numpy() for chunk in chunks]
        self._offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        self._firsts = np.cumsum([0, *map(len, chunks)])
        self.lengths: np.ndarray = np.concatenate([np.diff(offsets) for offsets in self._offsets]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        chunk = int(np.searchsorted(self._firsts, index, side="right")) - 1
        start, end = self._offsets[chunk][index - self._firsts[chunk] :][:2]
        return self._flat[chunk][start:end]
