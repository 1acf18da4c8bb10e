"""One process at a time in a run's folder. The system releases the lock when its holder ends, however it ends."""

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
INSTEAD = "Wait until it ends, or write to a different folder with run=<name>"
_held: dict[tuple[int, Path], int] = {}  # open files by process and folder: closing one would release its lock


class FolderInUse(ValueError):
    """Another running process writes to the folder."""


def acquire(folder: str | Path, *, patience: float = 0.0, poll: float = 1.0) -> None:
    """Locks `folder` for the rest of this process's life; does nothing if this process already holds the lock.

    A POSIX record lock: child processes do not inherit it, and it works across machines over NFS. Prints a warning on
    standard error if the file system does not support locks. patience: seconds to wait for another process to end.
    Raises FolderInUse, naming the process, its machine and since when it runs.
    """
    key = (os.getpid(), Path(folder).resolve())
    if key in _held:
        return
    file = os.open(key[1] / FILE, os.O_RDWR | os.O_CREAT, 0o666)
    deadline, announced = time.monotonic() + patience, False
    while not _locked(file, folder):
        if time.monotonic() >= deadline:
            holder = _holder(file)
            os.close(file)
            raise FolderInUse(f"{folder} is in use by {holder}. {INSTEAD}")
        if not announced:
            print(f"waiting for {_holder(file)}, which uses {folder}", file=sys.stderr, flush=True)
            announced = True
        time.sleep(poll)
    _held[key] = file
    note = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(" ", "seconds")}
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(note).encode(), 0)


def check(folder: str | Path) -> None:
    """Raises FolderInUse if another process has locked `folder`, which need not exist; locks nothing."""
    key = (os.getpid(), Path(folder).resolve())
    if key in _held or not (key[1] / FILE).exists():
        return
    file = os.open(key[1] / FILE, os.O_RDWR)
    try:
        if not _locked(file, folder):
            raise FolderInUse(f"{folder} is in use by {_holder(file)}. {INSTEAD}")
    finally:
        os.close(file)  # this also releases the lock


def _locked(file: int, folder: str | Path) -> bool:
    """Whether this process holds the lock now, or the file system does not support locks."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        print(
            f"{folder} cannot be locked ({error.strerror}). Make sure that no other process writes to it",
            file=sys.stderr,
        )
    return True


def _holder(file: int) -> str:
    try:
        note = json.loads(os.pread(file, 1000, 0))
        holder = f"process {note['pid']} on {note['host']} since {note['since']}"
        is_suspended = note["host"] == socket.gethostname() and _is_suspended(note["pid"])
        return holder + (f", suspended (kill -CONT {note['pid']} resumes it)" if is_suspended else "")
    except (ValueError, KeyError, TypeError):  # the holder has not written its note yet
        return "another process"


def _is_suspended(pid: int) -> bool:
    """Whether a process on this machine is stopped, as by Ctrl-Z; False if there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].startswith("T")
    except OSError:
        return False
