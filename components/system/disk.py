"""JSON objects in files; atomic replacement of files and folders; content hashes."""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
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


def write_json(file: Path, value: Mapping[str, Any], *, lenient: bool = False) -> None:
    """Replaces `file` by a JSON object. Raises ValueError, before writing, if a number is not finite.

    lenient: writes numbers that are not finite as Python does, and values of other types as their `str`.
    """
    other = str if lenient else None
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=lenient, default=other) + "\n")


def write_text(file: Path, text: str) -> None:
    """Writes a temporary file, syncs and renames it, so an error or a kill leaves the earlier file."""
    staging = file.with_name(f".writing-{file.name}")
    try:
        with staging.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(staging, file)
    finally:
        staging.unlink(missing_ok=True)


def read_json(file: Path, error: type[Exception] = ValueError) -> dict[str, Any]:
    """The JSON object in a file. Raises `error`, naming the file, if there is none."""
    try:
        value = json.loads(file.read_bytes())
    except OSError as reason:
        raise error(f"cannot read {file}: {reason.strerror}") from reason
    except (ValueError, RecursionError) as reason:  # not JSON, not UTF-8, a number or nesting without end
        raise error(f"{file} is not JSON: {reason}") from reason
    if not isinstance(value, dict):
        raise error(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value


def read_json_if_any(file: Path, error: type[Exception] = ValueError) -> dict[str, Any] | None:
    """What `read_json` reads; None if there is no such file."""
    return read_json(file, error) if file.exists() else None
