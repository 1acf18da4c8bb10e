"""One process at a time in a run's folder. The system lets go of the lock when its holder ends, however it ends."""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from datetime import datetime
from pathlib import Path

FILE = ".lock"
INSTEAD = "Wait until it ends, or write to a folder of its own with run=<name>"
_held: dict[tuple[int, Path], int] = {}  # open files by process and folder: closing one would release its lock


class FolderInUse(ValueError):
    """Another process that is running writes to the folder."""


def take(folder: str | Path, *, patience: float = 0.0, poll: float = 1.0) -> None:
    """Locks `folder` for the rest of this process's life; does nothing where it has done so already.

    A POSIX record lock: children do not inherit it, and NFS passes it on to other machines. Where the file system
    has no locks a line on standard error says so. patience: seconds to wait for another process to end.
    Raises FolderInUse, naming the process, its machine and since when.
    """
    key = (os.getpid(), Path(folder).resolve())
    if key in _held:
        return
    file = os.open(key[1] / FILE, os.O_RDWR | os.O_CREAT, 0o666)
    deadline, told = time.monotonic() + patience, False
    while not _locked(file, folder):
        if time.monotonic() >= deadline:
            holder = _holder(file)
            os.close(file)
            raise FolderInUse(f"{folder} is in use by {holder}. {INSTEAD}")
        if not told:
            print(f"waiting for {_holder(file)}, which uses {folder}", file=sys.stderr, flush=True)
            told = True
        time.sleep(poll)
    _held[key] = file
    note = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(" ", "seconds")}
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(note).encode(), 0)


def check(folder: str | Path) -> None:
    """Raises FolderInUse where another process has locked `folder`, which may not be there; locks nothing."""
    key = (os.getpid(), Path(folder).resolve())
    if key in _held or not (key[1] / FILE).exists():
        return
    file = os.open(key[1] / FILE, os.O_RDWR)
    try:
        if not _locked(file, folder):
            raise FolderInUse(f"{folder} is in use by {_holder(file)}. {INSTEAD}")
    finally:
        os.close(file)  # which lets go of the lock as well


def _locked(file: int, folder: str | Path) -> bool:
    """Whether the lock is this process's now, or there are none on this file system."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        print(
            f"{folder} cannot be locked ({error.strerror}): make sure that no other process writes to it",
            file=sys.stderr,
        )
    return True


def _holder(file: int) -> str:
    try:
        note = json.loads(os.pread(file, 1000, 0))
        told = f"process {note['pid']} on {note['host']} since {note['since']}"
        is_suspended = note["host"] == socket.gethostname() and _is_suspended(note["pid"])
        return told + (f", suspended (kill -CONT {note['pid']} resumes it)" if is_suspended else "")
    except (ValueError, KeyError, TypeError):  # it has just begun
        return "another process"


def _is_suspended(pid: int) -> bool:
    """Whether a process of this machine is stopped, as by Ctrl-Z; not known where there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].startswith("T")
    except OSError:
        return False
