"""Rankings on disk: no decision is lost."""

import json

import pytest

from components.comparing.completions import Ranking
from components.comparing.ledger import Ledger, read_rankings, write_rankings

PROMPT = [{"role": "user", "content": "wo wohnt fév ?"}]
FIRST, SECOND = Ranking(PROMPT, ["a\n\u2028b", "c"], [1, 0]), Ranking(PROMPT, ["d", "e"], [0, 0])


def files(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_every_decision_is_on_disk_at_once(tmp_path):
    book = Ledger(tmp_path)
    book.add(FIRST)
    assert json.loads((tmp_path / "preferences.jsonl").read_text()) == {"record": 0, **FIRST._asdict()}
    book.add(None)
    assert json.loads((tmp_path / "skipped.jsonl").read_text()) == {"record": 1}
    assert (book.position, book.skipped) == (2, 1)


@pytest.mark.parametrize("last", [None, SECOND])
def test_a_later_session_resumes_after_the_last_decision(tmp_path, last):
    for decision in (FIRST, last):
        Ledger(tmp_path).add(decision)
    assert Ledger(tmp_path).position == 2
    assert read_rankings(tmp_path) == [FIRST] + [SECOND] * (last is not None)


def test_undo_removes_decisions_one_by_one_across_sessions_and_kinds(tmp_path):
    states = []
    for decision in (FIRST, None, SECOND, None):
        Ledger(tmp_path).add(decision)
        states.append(files(tmp_path))
    for before in reversed(states[:-1]):
        assert Ledger(tmp_path).undo()
        assert {name: content for name, content in files(tmp_path).items() if content} == before
    assert Ledger(tmp_path).undo() and not Ledger(tmp_path).undo()
    assert set(files(tmp_path).values()) == {b""}


def test_a_line_left_incomplete_by_a_kill_is_removed(tmp_path):
    book = Ledger(tmp_path)
    book.add(FIRST)
    whole = files(tmp_path)
    book.add(SECOND)
    file = tmp_path / "preferences.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    assert Ledger(tmp_path).position == 1
    assert files(tmp_path) == whole


@pytest.mark.parametrize("line", ["{}", "nonsense", "[1]", '{"record": "x"}'])
def test_an_invalid_line_is_named(tmp_path, line):
    Ledger(tmp_path).add(FIRST)
    with (tmp_path / "preferences.jsonl").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(ValueError, match="preferences.jsonl:2: expected a judged record"):
        Ledger(tmp_path)


def test_a_machines_rankings_are_written_like_a_persons_and_leave_nothing_behind(tmp_path):
    for folder in ("machine", "person"):
        (tmp_path / folder).mkdir()
    write_rankings(tmp_path / "machine", [FIRST, SECOND])
    for decision in (FIRST, SECOND):
        Ledger(tmp_path / "person").add(decision)
    assert files(tmp_path / "machine") == files(tmp_path / "person")


def test_a_failure_while_writing_leaves_what_was_there(tmp_path):
    write_rankings(tmp_path, [FIRST])
    before = files(tmp_path)

    def broken():
        yield SECOND
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rankings(tmp_path, broken())
    assert files(tmp_path) == before


def test_no_file_holds_no_rankings(tmp_path):
    assert read_rankings(tmp_path) == []
