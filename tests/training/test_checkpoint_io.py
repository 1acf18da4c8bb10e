import os
import resource
import signal

import pytest
import torch

from components.training.checkpoint_io import AtomicCheckpointIO, CheckpointError, check

STATE = {"weights": torch.arange(6.0), "step": 3, "names": ["a", "b"]}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "run" / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, path)
    return path


def test_what_was_saved_is_read_back(saved):
    state = AtomicCheckpointIO().load_checkpoint(saved)
    assert state["weights"].tolist() == [0, 1, 2, 3, 4, 5]
    assert (state["step"], state["names"]) == (3, ["a", "b"])


def test_the_file_is_an_ordinary_torch_file_and_the_only_one_written(saved):
    assert torch.load(saved, weights_only=True)["step"] == 3
    assert [path.name for path in saved.parent.iterdir()] == ["a.ckpt"]


def test_a_flipped_bit_anywhere_is_detected(saved):
    whole = saved.read_bytes()
    for place in range(0, len(whole), 37):
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match="damaged"):
            check(saved)


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_truncated_file_is_reported_as_damaged_when_loaded(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=f"{saved}.*damaged"):
        AtomicCheckpointIO().load_checkpoint(saved)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at .*nowhere.ckpt"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "nowhere.ckpt")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_no_code_in_a_file_runs_even_if_the_caller_allows_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    AtomicCheckpointIO().save_checkpoint({"bomb": Bomb()}, tmp_path / "bomb.ckpt")
    with pytest.raises(CheckpointError, match="plain data only"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "bomb.ckpt", weights_only=False)
    assert not (tmp_path / "exploded").exists()


def test_a_full_disk_leaves_the_earlier_file_and_no_leftovers(saved):
    before = saved.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # fails midway, as on a full disk
    try:
        with pytest.raises(CheckpointError, match="cannot write .*a.ckpt: File too large.*Free space"):
            AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(50_000)}, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["a.ckpt"]


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot write checkpoint .*file.*writable"):
        AtomicCheckpointIO().save_checkpoint(STATE, tmp_path / "file" / "a.ckpt")


def test_a_failed_rename_leaves_the_earlier_file_and_no_leftovers(saved, monkeypatch):
    def read_only(*_):
        raise OSError(30, "Read-only file system")

    before = saved.read_bytes()
    monkeypatch.setattr(os, "replace", read_only)
    with pytest.raises(CheckpointError, match="Read-only file system"):
        AtomicCheckpointIO().save_checkpoint({"step": 4}, saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["a.ckpt"]


def test_an_error_that_is_not_the_disks_is_raised_unchanged(tmp_path):
    class Unsaveable:
        def __reduce__(self):
            raise RuntimeError("no, not me")

    with pytest.raises(RuntimeError, match="no, not me"):
        AtomicCheckpointIO().save_checkpoint({"it": Unsaveable()}, tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_kill_9_in_the_middle_of_a_save_leaves_the_earlier_file(saved):
    child = os.fork()
    if not child:  # all is written, nothing renamed
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        try:
            AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(1000)}, saved)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert saved.with_name("a.ckpt.tmp").exists()
    assert AtomicCheckpointIO().load_checkpoint(saved)["step"] == 3
    AtomicCheckpointIO().save_checkpoint({"step": 4}, saved)  # the leftover is in no one's way
    assert [path.name for path in saved.parent.iterdir()] == ["a.ckpt"]
