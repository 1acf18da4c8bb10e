"""Rankings on disk: a machine's are written all at once, a person's one by one as they are made."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from components.comparing.completions import Ranking
from components.system.disk import write_text

PREFERENCES, SKIPPED = "preferences.jsonl", "skipped.jsonl"


class Entry(NamedTuple):
    """A decision: the number of its record, the file that contains its line, and the byte offset of the line."""

    record: int
    file: Path
    start: int


class Ledger:
    """A person's decisions on records 0, 1, 2, …, in this order, one line each, appended and synced to disk.

    preferences.jsonl: {"record", "prompt", "completions", "ranks"}; skipped.jsonl: {"record"}, the skipped ones.
    Opening resumes from the files in the folder; an incomplete last line is removed. Raises ValueError naming a line
    that is neither.
    """

    def __init__(self, folder: Path) -> None:
        self.preferences, self.skips = folder / PREFERENCES, folder / SKIPPED
        files = [file for file in (self.preferences, self.skips) if file.exists()]
        self.entries = sorted(entry for file in files for entry in _entries(file))

    @property
    def position(self) -> int:
        """The record to decide on next."""
        return self.entries[-1].record + 1 if self.entries else 0

    @property
    def skipped(self) -> int:
        """How many records were skipped."""
        return sum(entry.file == self.skips for entry in self.entries)

    def add(self, ranking: Ranking | None) -> None:
        """Appends the decision on the record at `position`; None: skipped."""
        file = self.skips if ranking is None else self.preferences
        row = {"record": self.position} if ranking is None else _row(self.position, ranking)
        with file.open("ab") as stream:
            entry = Entry(self.position, file, stream.tell())
            stream.write(_line(row).encode())
            _sync(stream)
        self.entries.append(entry)

    def undo(self) -> bool:
        """Undoes the last decision, even one from an earlier session; False if there is none."""
        if not self.entries:
            return False
        last = self.entries.pop()
        _cut(last.file, last.start)
        return True


def write_rankings(folder: Path, rankings: Iterable[Ranking]) -> None:
    """Writes preferences.jsonl in a Ledger's format, atomically."""
    write(folder / PREFERENCES, (_row(number, ranking) for number, ranking in enumerate(rankings)))


def read_rankings(folder: Path) -> list[Ranking]:
    """The rankings in preferences.jsonl; [] if it does not exist yet."""
    file = folder / PREFERENCES
    rows = read(file) if file.exists() else []
    return [Ranking(*(row[field] for field in Ranking._fields)) for row in rows]


def write(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replaces a file by JSON lines."""
    write_text(file, "".join(map(_line, rows)))


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def _row(number: int, ranking: Ranking) -> dict[str, Any]:
    return {"record": number, **ranking._asdict()}


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _entries(file: Path) -> Iterator[Entry]:
    start = 0
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):  # the process was killed while writing it
            _cut(file, start)
            return
        try:
            yield Entry(int(json.loads(line)["record"]), file, start)
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f'{file}:{number}: expected a judged record with its number, {{"record": …}}, got '
                f"{line[:40]!r}. force=true moves the file aside and starts over"
            ) from None
        start += len(line)


def _cut(file: Path, size: int) -> None:
    with file.open("r+b") as stream:
        stream.truncate(size)
        _sync(stream)


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())
