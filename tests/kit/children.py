"""Programs that run beside a test, and waiting for what they write."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OUTPUT = "output.txt"  # in the folder that the program runs in


def started(folder: Path, *arguments: str, **settings: Any) -> subprocess.Popen[bytes]:
    """`python <arguments>` in a folder, which gets all that it prints as a file. settings: those of Popen."""
    with (folder / OUTPUT).open("wb") as output:
        command = [sys.executable, *arguments]
        return subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, **settings)


def wait_for(path: Path, program: subprocess.Popen[bytes], folder: Path, seconds: float = 300) -> None:
    """Waits until a program that was `started` in a folder has written something to `path`. Fails with its output if it
    ends before that, and ends it if it takes too long."""
    deadline = time.monotonic() + seconds
    while not _has_content(path):
        ended, late = program.poll() is not None, time.monotonic() > deadline
        if _has_content(path):
            return
        if late and not ended:
            program.kill()
        if late or ended:
            end = f"the program ended with status {program.wait()}" if ended else f"{seconds:g} s have passed"
            raise AssertionError(f"{end} without {path}. Its output:\n{(folder / OUTPUT).read_text()}")
        time.sleep(0.02)


def _has_content(path: Path) -> bool:
    """A file that was opened is there before what is written to it."""
    return path.exists() and path.stat().st_size > 0
