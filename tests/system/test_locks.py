"""Two processes never write to the same folder, and a dead one never blocks another."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from components.system import locks
from components.system.locks import FolderInUse, acquire

ROOT = Path(__file__).resolve().parents[2]
HOLD = (
    "import sys; from components.system.locks import acquire; "
    "acquire(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_folder_in_use_is_refused_and_the_error_names_its_user(holder, tmp_path):
    with pytest.raises(FolderInUse) as caught:
        acquire(tmp_path)
    told = str(caught.value)
    assert f"{tmp_path} is in use by process {holder.pid} on {socket.gethostname()} since 20" in told
    assert "run=<name>" in told


def test_a_suspended_process_keeps_the_folder_and_the_error_says_how_to_resume_it(holder, tmp_path):
    holder.send_signal(signal.SIGSTOP)
    os.waitpid(holder.pid, os.WUNTRACED)
    with pytest.raises(FolderInUse, match=rf"since \S+ \S+, suspended \(kill -CONT {holder.pid} resumes it\)\. Wait"):
        acquire(tmp_path)


@pytest.mark.parametrize(
    "note", [{"pid": 1, "host": socket.gethostname()}, {"pid": 1, "host": "elsewhere", "since": "x" * 2000}, "?"]
)
def test_the_note_of_a_dead_process_does_not_lock_the_folder(note, tmp_path):
    (tmp_path / locks.FILE).write_text(json.dumps(note))
    acquire(tmp_path)
    assert json.loads((tmp_path / locks.FILE).read_text())["pid"] == os.getpid()


def test_a_killed_process_releases_its_lock(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    acquire(tmp_path)


def test_a_patient_process_gets_the_folder_when_the_other_ends(holder, tmp_path, capfd, monkeypatch):
    def ends(_seconds):
        holder.stdin.close()
        holder.wait()

    monkeypatch.setattr(locks.time, "sleep", ends)
    acquire(tmp_path, patience=60)
    told = capfd.readouterr().err
    assert told.startswith(f"waiting for process {holder.pid} on ") and told.endswith(f"which uses {tmp_path}\n")


def test_a_process_can_take_its_folder_repeatedly_and_other_folders_too(holder, tmp_path):
    (tmp_path / "other").mkdir()
    acquire(tmp_path / "other")
    acquire(tmp_path / "other")


def test_a_child_does_not_inherit_the_lock(tmp_path):
    acquire(tmp_path)
    pid = os.fork()
    if not pid:
        try:
            acquire(tmp_path)
        except FolderInUse:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


def test_a_file_system_without_locks_is_reported(tmp_path, capfd, monkeypatch):
    def none(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", none)
    acquire(tmp_path)
    assert "cannot be locked (No locks available)" in capfd.readouterr().err
