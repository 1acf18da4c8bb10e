"""Starts `python train.py …` often and fast: every run is forked from a process that has imported what all need.

Nothing has run there but imports, so a run finds what it would find in a process of its own, some seconds sooner.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENT = {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


class Nursery:
    """The process that forks; close() ends it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | ENVIRONMENT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(self, arguments: Sequence[str], folder: Path) -> tuple[int, str]:
        """Exit status (negative: the signal that ended it) and what was printed, of train.py in a group of its own."""
        said = folder / "said.txt"
        print(json.dumps([list(arguments), str(folder), str(said)]), file=self._process.stdin, flush=True)
        status = int(self._process.stdout.readline())
        return status, said.read_text()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def serve() -> None:
    import runpy

    sys.path.insert(0, str(ROOT))
    import components.tasks.evaluate
    import components.tasks.fit  # noqa: F401

    for line in sys.stdin:
        arguments, folder, said = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()
            os.chdir(folder)
            output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for opened, place in ((nothing, 0), (output, 1), (output, 2)):
                os.dup2(opened, place)
            sys.argv = [str(ROOT / "train.py"), *arguments]
            runpy.run_path(sys.argv[0], run_name="__main__")  # ends the process by itself, with 0 too
            sys.exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, flush=True)


if __name__ == "__main__":
    serve()
