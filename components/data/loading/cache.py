"""Tokenised records on disk: made once for a source, tokenizer and settings, then mapped into memory."""

import fcntl
import json
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

VERSION = 6  # raise it whenever the code makes other tokens or columns of the same records
_COUNTS = "counts.json"
PREFIX = ".making-"


def stored(
    folder: str | Path,
    key: str,
    make: Callable[[Counter[str]], Iterator[dict[str, Any]]],
    features: datasets.Features,
) -> tuple[datasets.Dataset, Counter[str]]:
    """The data set called `key` in a folder, and what was counted while it was made.

    Makes it from the rows of `make(counts)` if it is not there: under a temporary name, then renamed, so that
    a half written one is never read, and of two processes one wins. Memory stays bounded however many rows
    there are. Raises what `make` raises, and LookupError when it yields no row.
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
    return table, Counter(json.loads((final / _COUNTS).read_text()))


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder to work in, removed at the end; locked meanwhile, and a lock ends with its process however that ends."""
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
    """Removes the working folders that are not locked: those of killed processes."""
    with _opened(folder) as entrance:
        fcntl.flock(entrance, fcntl.LOCK_EX)  # nobody looks at a folder that is made but not yet locked
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
        raise LookupError(f"no usable record in it (counted: {dict(counts)})")

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
    (scratch / "done" / _COUNTS).write_text(json.dumps(counts))
    shutil.rmtree(scratch / "arrow")


class Ragged:
    """A column of lists of numbers, of a table as it lies on disk: item i is a view of the mapped file."""

    def __init__(self, table: datasets.Dataset, column: str):
        chunks = table.data.column(column).chunks
        self._flat = [chunk.values.to_numpy() for chunk in chunks]
        self._offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        self._firsts = np.cumsum([0, *map(len, chunks)])
        self.lengths: np.ndarray = np.concatenate([np.diff(one) for one in self._offsets]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        chunk = int(np.searchsorted(self._firsts, index, side="right")) - 1
        start, end = self._offsets[chunk][index - self._firsts[chunk] :][:2]
        return self._flat[chunk][start:end]
