"""Atomic replacement of folders and JSON files; content hashes."""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any


def present(path: str | Path) -> bool:
    """Whether `path` is a folder; one that a kill left under its `.previous` name is restored first."""
    path = Path(path)
    previous = path.with_name(f"{path.name}.previous")
    if not path.exists() and previous.is_dir():
        previous.rename(path)
    return path.is_dir()


def swap(staging: Path, path: Path) -> None:
    """Replaces `path` with `staging`; one whole folder exists at every moment, see `present`."""
    previous = path.with_name(f"{path.name}.previous")
    if path.exists():
        shutil.rmtree(previous, ignore_errors=True)
        path.rename(previous)
    try:
        staging.rename(path)
    except OSError:
        if previous.exists():
            previous.rename(path)
        raise
    shutil.rmtree(previous, ignore_errors=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file, or a folder's directory entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_of(path: str | Path, *, but: Collection[str] = ()) -> str:
    """sha256 over the names, relative to `path`, and the bytes of all files below it except those in `but`."""
    digest = hashlib.sha256()
    for file in sorted(Path(path).rglob("*")):
        name = file.relative_to(path).as_posix()
        if name in but or not file.is_file():
            continue
        digest.update(name.encode())
        digest.update(bytes.fromhex(hash_of_file(file)))
    return digest.hexdigest()


def hash_of_file(file: Path) -> str:
    """sha256 of a file's contents, in hex; read again only if its size or modification time has changed."""
    stat = file.stat()
    return _hash_of_file(file, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _hash_of_file(file: Path, size: int, mtime_ns: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Replaces `file` by a JSON object. Raises ValueError, before writing, if a number is not finite."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Writes a temporary file, syncs and renames it, so a kill leaves the earlier file."""
    staging = file.with_name(f".writing-{file.name}")
    with staging.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(staging, file)


def read_json(file: Path) -> dict[str, Any] | None:
    """Reads what write_json wrote; None if there is no such file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
