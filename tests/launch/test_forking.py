"""Where forking is not safe, it is not done (that a forked stage ends as a fresh one does: test_smoke_runs)."""

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from components.launch import forking
from tests.kit.forking import needs_forking

ROOT = Path(__file__).resolve().parents[2]
ONE = {"task": "components.tasks.pipeline.pipeline", "trainer": {"devices": 1, "num_nodes": 1}}


@needs_forking
def test_a_stage_is_forked_only_from_a_process_that_has_only_imported(monkeypatch):
    monkeypatch.setattr(forking, "ACCELERATORS", ())
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr(forking, "_num_threads", lambda: 3)
    monkeypatch.setattr(forking, "_threads", 0)
    assert forking.prepare(ONE) and forking.prepare(ONE)
    monkeypatch.setattr(forking, "_num_threads", lambda: 4)  # not by an import
    assert not forking.prepare(ONE)
    monkeypatch.setattr(forking, "_threads", 0)
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert not forking.prepare(ONE)


@needs_forking
def test_a_library_that_ends_its_threads_for_a_fork_does_not_prevent_the_next_one(monkeypatch):
    """OpenBLAS stops its pool before a fork and starts it again when it is next needed."""
    monkeypatch.setattr(forking, "ACCELERATORS", ())
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr(forking, "_threads", 0)
    monkeypatch.setattr(forking, "_num_threads", lambda: 3)
    monkeypatch.setattr(forking.os, "fork", lambda: 1)
    assert forking.prepare(ONE)
    monkeypatch.setattr(forking, "_num_threads", lambda: 2)
    forking.Child([])
    assert forking.prepare(ONE)
    monkeypatch.setattr(forking, "_num_threads", lambda: 3)  # started after the fork, by something else
    assert not forking.prepare(ONE)


@pytest.mark.slow
@needs_forking
def test_every_stage_is_forked_whatever_number_of_threads_the_libraries_use():
    code = (
        "import os\n"
        "from components.launch import forking\n"
        "forking.ACCELERATORS = ()\n"
        "one = {'task': 'components.tasks.fit.fit', 'trainer': {'devices': 1, 'num_nodes': 1}}\n"
        "for stage in range(3):\n"
        "    assert forking.prepare(one), f'stage {stage} would not be forked'\n"
        "    try:\n"
        "        child = forking.Child([])\n"
        "    except forking.Forked:\n"
        "        os._exit(7)\n"
        "    assert child.wait() == 7\n"
    )
    threads = {name: "2" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | threads, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


@needs_forking
def test_no_collection_in_a_forked_stage_touches_what_was_imported(monkeypatch):
    """A full collection touches, and so copies, every page that the fork shares with its parent."""
    monkeypatch.setattr(forking, "ACCELERATORS", ())
    monkeypatch.setattr(forking, "_threads", 0)
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # whatever threads earlier tests have left
    gc.unfreeze()
    try:
        assert forking.prepare(ONE)
        assert gc.get_freeze_count() > 0 and not any(one is sys.modules for one in gc.get_objects())
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(
    "trainer", [{"devices": 2, "num_nodes": 1}, {"devices": 1, "num_nodes": 2}, {"devices": "auto"}]
)
def test_a_stage_of_several_processes_is_not_forked(trainer, monkeypatch):
    monkeypatch.setattr(forking, "ACCELERATORS", ())
    assert not forking.prepare(ONE | {"trainer": trainer})


def test_with_an_accelerator_or_under_torchrun_nothing_is_forked(monkeypatch, tmp_path):
    monkeypatch.setattr(forking, "ACCELERATORS", (f"{tmp_path}*",))
    assert not forking.prepare(ONE)
    monkeypatch.setattr(forking, "ACCELERATORS", ())
    monkeypatch.setattr(forking.processes, "detect_launcher", lambda: forking.processes.Launcher("torchrun", 0, 1, 1))
    assert not forking.prepare(ONE)
