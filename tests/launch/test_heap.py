"""The heap's settings: set once, by starting over, and never against the user's own."""

import json
import os
import subprocess
import sys

import pytest

from components.launch import heap

GLIBC = "glibc 2.36"
OWN = "glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold=1073741824:glibc.malloc.mmap_threshold=33554432"
REPORTS = """
import json, os, sys
from components.launch import heap
print(os.getpid(), flush=True)
heap.tune()
print(json.dumps([os.getpid(), sys.argv[1:], sys.flags.optimize, os.environ[heap.VARIABLE]]))
"""


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
def test_a_process_starts_over_once_with_its_own_arguments():
    environ = {name: value for name, value in os.environ.items() if name != heap.VARIABLE}
    command = [sys.executable, "-O", "-c", REPORTS, "stage=rm", "a b"]
    first, second, reported = subprocess.run(
        command, env=environ, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert first == second
    assert json.loads(reported) == [int(first), ["stage=rm", "a b"], 1, OWN]


def test_a_process_without_glibc_goes_on(monkeypatch):
    def missing(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", missing)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started over"))
    heap.tune()
