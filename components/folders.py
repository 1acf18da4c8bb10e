"""A folder replaced whole: at every moment the old one or the new one exists."""

import os
import shutil
from pathlib import Path


def present(path: str | Path) -> bool:
    """Whether a folder lies at `path`; one that a kill left under its `.previous` name is put back first."""
    path = Path(path)
    previous = path.with_name(f"{path.name}.previous")
    if not path.exists() and previous.is_dir():
        previous.rename(path)
    return path.is_dir()


def swap(staging: Path, path: Path) -> None:
    """Puts `staging` in the place of `path`; at every moment one whole folder exists, see `present`."""
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
    """Waits until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
