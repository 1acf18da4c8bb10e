"""Waiting for a program ends when the program does."""

import pytest

from tests.kit.children import started, wait_for


def test_a_program_that_dies_is_noticed_at_once_with_what_it_printed(tmp_path):
    program = started(tmp_path, "-c", "raise SystemExit('no space left')")
    with pytest.raises(AssertionError, match=r"(?s)ended with status 1 without .*never. Its output:\nno space left"):
        wait_for(tmp_path / "never", program, tmp_path)


def test_a_program_that_writes_and_ends_has_written(tmp_path):
    program = started(tmp_path, "-c", "open('note', 'w').write('x')")
    wait_for(tmp_path / "note", program, tmp_path)
    assert program.wait() == 0


def test_a_file_that_is_only_opened_is_not_yet_written(tmp_path):
    program = started(tmp_path, "-c", "import time; note = open('note', 'w'); time.sleep(0.3); note.write('x')")
    wait_for(tmp_path / "note", program, tmp_path)
    assert (tmp_path / "note").read_text() == "x"
    assert program.wait() == 0


def test_a_program_that_takes_too_long_is_ended(tmp_path):
    program = started(tmp_path, "-c", "import time; print('busy', flush=True); time.sleep(300)")
    with pytest.raises(AssertionError, match="0.2 s have passed without .*never"):
        wait_for(tmp_path / "never", program, tmp_path, seconds=0.2)
    assert program.wait() == -9
