"""Line editing at a keyboard: history across chats, completion."""

import pytest

from components.serving import keyboard

readline = pytest.importorskip("readline")
WORDS = ("/reset", "/retry", "/set temperature=", "/set top_p=")


def test_a_command_is_completed_from_its_beginning_and_a_message_is_not():
    assert keyboard.completions("/re", WORDS) == ["/reset", "/retry"]
    assert keyboard.completions("/set t", WORDS) == ["/set temperature=", "/set top_p="]
    assert keyboard.completions("re", WORDS) == keyboard.completions("", WORDS) == []


def test_lines_are_remembered_between_chats(tmp_path):
    file = tmp_path / "state" / "gradus" / "history"
    readline.clear_history()
    with keyboard.Editing(WORDS, file):
        readline.add_history("what color is the fev ?")
        complete = readline.get_completer()
        assert [complete("/re", number) for number in range(3)] == ["/reset", "/retry", None]
    readline.clear_history()
    with keyboard.Editing(WORDS, file):
        assert readline.get_history_item(1) == "what color is the fev ?"
    readline.clear_history()


def test_a_chat_continues_if_its_history_cannot_be_saved(tmp_path):
    (tmp_path / "file").touch()
    with keyboard.Editing(WORDS, tmp_path / "file" / "history"):
        pass


def test_the_history_file_is_in_the_systems_state_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert keyboard.history_file() == tmp_path / "gradus" / "history"
