"""Tokenized records on disk: made once per source, tokenizer and settings, then memory-mapped."""

import fcntl
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError

from components.data.sources.source import quiet_progress
from components.system.disk import read_json, write_json

VERSION = 8  # increment it whenever the code makes different tokens or columns from the same records
_COUNTS = "counts.json"
PREFIX = ".making-"


def stored(
    folder: str | Path,
    key: str,
    make: Callable[[Counter[str]], Iterator[dict[str, Any]]],
    features: datasets.Features,
) -> tuple[datasets.Dataset, Counter[str]]:
    """The data set named `key` in a folder, and the counts from when it was made.

    If it does not exist, makes it from the rows of `make(counts)` under a temporary name and renames it, so that a
    half-written one is never read and one of two processes wins. Memory use does not depend on the number of rows.
    Raises what `make` raises, and LookupError if it yields no rows.
    """
    final = Path(folder) / key
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(final.parent)
    if not final.exists():
        with _scratch(final.parent) as scratch, quiet_progress():
            _make(scratch, key, make, features)
            try:
                (scratch / "done").rename(final)
            except OSError:  # another process was first
                if not final.exists():
                    raise
    with quiet_progress():
        table = datasets.load_from_disk(str(final))
    return table, Counter(read_json(final / _COUNTS))


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


def _make(scratch: Path, key: str, make: Callable, features: datasets.Features) -> None:
    counts: Counter[str] = Counter()
    rows = make(counts)
    first = next(rows, None)
    if first is None:
        raise LookupError(f"no usable records (counts: {dict(counts)})")

    def all_rows() -> Iterator[dict[str, Any]]:
        yield first
        yield from rows

    try:
        table = datasets.Dataset.from_generator(
            all_rows, features=features, cache_dir=str(scratch / "arrow"), fingerprint=key
        )
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None
    table.save_to_disk(str(scratch / "done"))
    write_json(scratch / "done" / _COUNTS, counts)
    shutil.rmtree(scratch / "arrow")


class Ragged:
    """A column of lists of numbers in a memory-mapped table: item i is a view of the file."""

    def __init__(self, table: datasets.Dataset, column: str):
        chunks = table.data.column(column).chunks
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
