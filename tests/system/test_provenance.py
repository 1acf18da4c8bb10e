"""Which commit a run is of."""

import subprocess

import pytest

from components.system import provenance


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """One with a commit of code and documentation, as the project's."""
    for name in ("train.py", "README.md", "components/a.py", "docs/results/page.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("README.md", ""),
        ("docs/results/page.json", ""),
        ("train.py", "+"),
        ("components/a.py", "+"),
        ("new.py", ""),
    ],
)
def test_a_commit_is_marked_if_tracked_files_that_a_run_can_depend_on_differ(name, mark, repository):
    clean = provenance.commit()
    assert len(clean) >= 7 and "+" not in clean
    (repository / name).write_text("2\n")
    assert provenance.commit() == clean + mark


def test_outside_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.commit() == ""
