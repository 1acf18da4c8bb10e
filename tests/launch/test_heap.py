"""The heap's settings: set once, by starting over, and never against the user's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.launch import heap

ROOT = str(Path(__file__).resolve().parents[2])
GLIBC = "glibc 2.36"
OWN = "glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold=1073741824:glibc.malloc.mmap_threshold=33554432"
REPORTS = """
import json, os, sys
from components.launch import heap
print(os.getpid(), flush=True)
heap.tune()
print(json.dumps([os.getpid(), sys.argv[1:], sys.flags.optimize, os.environ.get(heap.VARIABLE)]))
"""


def lines_of(folder, program):
    """What a script prints that is started without settings of the heap."""
    script = folder / "script.py"
    script.write_text(program)
    environ = {name: value for name, value in os.environ.items() if name != heap.VARIABLE}
    command = [sys.executable, "-O", str(script), "stage=rm", "a b"]
    run = subprocess.run(command, env=environ | {"PYTHONPATH": ROOT}, capture_output=True, text=True, check=True)
    return run.stdout.splitlines()


@pytest.mark.parametrize(
    ("environ", "library", "expected"),
    [
        ({}, GLIBC, OWN),
        ({"GLIBC_TUNABLES": "glibc.rtld.nns=8"}, GLIBC, f"glibc.rtld.nns=8:{OWN}"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, GLIBC, None),
        ({"GLIBC_TUNABLES": OWN}, GLIBC, None),
        ({"MALLOC_ARENA_MAX": "2"}, GLIBC, None),
        ({"LD_PRELOAD": "libjemalloc.so.2"}, GLIBC, None),
        ({}, "", None),
    ],
)
def test_a_heap_that_the_user_has_set_stays_as_it_is(environ, library, expected):
    assert heap.tuned(environ, library) == expected


@pytest.mark.skipif(not heap._c_library(), reason="needs glibc")
def test_a_process_starts_over_once_with_its_own_arguments(tmp_path):
    first, second, reported = lines_of(tmp_path, REPORTS)
    assert first == second
    assert json.loads(reported) == [int(first), ["stage=rm", "a b"], 1, OWN]


@pytest.mark.skipif(not heap._c_library(), reason="needs glibc")
@pytest.mark.parametrize("argv", [["train.py", "stage=rm"], ["stage=rm", "a b"]], ids=["forked", "debugged"])
def test_another_program_that_runs_the_code_does_not_start_over(argv, tmp_path):
    begun, reported = lines_of(tmp_path, f"import sys; sys.argv = {argv}" + REPORTS)
    assert json.loads(reported) == [int(begun), argv[1:], 1, None]


def test_a_process_that_cannot_start_over_goes_on(monkeypatch):
    def forbidden(*command):
        started.append(command)
        raise PermissionError

    started = []
    monkeypatch.setattr(os, "confstr", lambda name: GLIBC, raising=False)
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os, "execv", forbidden)
    monkeypatch.setattr(sys, "argv", ["train.py", "stage=rm"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", "train.py", "stage=rm"])
    heap.tune()
    assert started == [(sys.executable, [sys.executable, "-u", "train.py", "stage=rm"])]


def test_a_process_without_glibc_goes_on(monkeypatch):
    def missing(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", missing, raising=False)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started over"))
    heap.tune()
