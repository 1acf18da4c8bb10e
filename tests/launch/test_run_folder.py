"""A run that fails before it has done anything leaves no folder."""

import pytest

from components.launch import run_folder


@pytest.fixture
def fail(tmp_path, monkeypatch):
    """Runs a job in logs/tiny/rm that writes files, by their names, and ends with a status; the folders that are left,
    and the files, below tmp_path."""
    monkeypatch.chdir(tmp_path)

    def run(*files, status=1, folder="logs/tiny/rm"):
        with pytest.raises(SystemExit), run_folder.dropped_if_unused():
            run_folder.Folder()._make(folder)
            for name in (".lock", ".hydra/config.yaml", "train.log", *files):
                file = tmp_path / folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
            raise SystemExit(status)
        return sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*"))

    return run


def test_notes_alone_are_removed_with_every_folder_that_was_created(fail):
    assert fail() == fail("checkpoints/inputs.json", "train_process_1.log") == fail(status=130) == []


def test_folders_that_existed_before_stay(fail, tmp_path):
    (tmp_path / "logs/tiny").mkdir(parents=True)
    assert fail() == ["logs", "logs/tiny"]
    (tmp_path / "logs/tiny/rm").mkdir()
    assert "logs/tiny/rm/train.log" in fail()


def test_another_run_next_to_it_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit), run_folder.dropped_if_unused():
        run_folder.Folder()._make("logs/tiny/rm")
        (tmp_path / "logs/tiny/sft/export").mkdir(parents=True)
        raise SystemExit(1)
    assert sorted(file.name for file in (tmp_path / "logs").rglob("*")) == ["export", "sft", "tiny"]


@pytest.mark.parametrize("file", ["checkpoints/last.ckpt", "export/card.json", "events.out.tfevents.1", "notes.txt"])
def test_anything_that_a_run_has_made_is_kept(fail, file):
    assert f"logs/tiny/rm/{file}" in fail(file)


def test_a_run_that_ends_well_keeps_its_folder(fail):
    assert "logs/tiny/rm/train.log" in fail(status=0)
