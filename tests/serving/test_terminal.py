"""The terminal chat, as a person and as a pipe see it."""

import io
import json

import pytest
from rich.console import Console

from components.serving import session as session_module
from components.serving.session import ChatSession, Turn
from components.serving.terminal import Terminal
from tests.kit import tiny_models
from tests.kit.typist import typist


def parrot_session(tokenizer, answer=" yes", **settings):
    header = tokenizer.render_prompt([{"role": "user", "content": ""}])[-1]
    model = tiny_models.parrot(tokenizer, [header, *tokenizer.encode(answer), tokenizer.end_id])
    return ChatSession(model, tokenizer, seed=0, **settings)


def talk(session, *lines, interactive=False, colors=False):
    """(stdout, stderr, prompts) of a chat with these lines; an exception among them is raised."""
    read, prompts = typist(lines)
    answers, notes = io.StringIO(), io.StringIO()
    Terminal(
        session,
        answers=Console(file=answers, force_terminal=colors, color_system=None),
        notes=Console(file=notes),
        interactive=interactive,
        read=read,
    ).run()
    return answers.getvalue(), notes.getvalue(), prompts


def test_a_pipe_gets_the_answers_one_after_another_and_nothing_else(small_tokenizer):
    assert talk(parrot_session(small_tokenizer), "a", "", "  ", "b") == (" yes\n yes\n", "", [""] * 5)


def test_a_person_sees_a_prompt_and_who_speaks(small_tokenizer):
    out, _, prompts = talk(parrot_session(small_tokenizer), "a", interactive=True)
    assert out == "bot>  yes\n\n"
    assert prompts == ["you> ", "you> "]


def test_quit_ends_the_chat_before_the_input_does(small_tokenizer):
    out, _, _ = talk(parrot_session(small_tokenizer), "a", "/quit", "b")
    assert out == " yes\n"


def test_control_c_at_the_prompt_quits(small_tokenizer):
    session = parrot_session(small_tokenizer)
    talk(session, KeyboardInterrupt(), "a", interactive=True)
    assert session.turns == []


def test_control_c_while_generating_stops_the_answer_and_the_chat_continues(small_tokenizer, monkeypatch):
    word = small_tokenizer.encode("no")
    whole = session_module.stream

    def interrupted(*arguments, **settings):
        yield from word
        raise KeyboardInterrupt

    session = parrot_session(small_tokenizer)
    monkeypatch.setattr(session_module, "stream", interrupted)
    lines = iter(["a", "b"])

    def read(_):
        line = next(lines, None)
        if line is None:
            raise EOFError
        if line == "b":
            monkeypatch.setattr(session_module, "stream", whole)
        return line

    answers, notes = io.StringIO(), io.StringIO()
    Terminal(session, answers=Console(file=answers), notes=Console(file=notes), interactive=True, read=read).run()
    assert answers.getvalue() == "bot> no …\nbot>  yes\n\n"
    assert session.turns == [Turn("a", "no"), Turn("b", " yes")]


def test_reset_clears_the_history(small_tokenizer):
    session = parrot_session(small_tokenizer)
    _, notes, _ = talk(session, "a", "/reset")
    assert session.turns == []
    assert "new conversation" in notes


def test_base_shows_the_text_verbatim_and_continues_it(small_tokenizer):
    text, after = "where does", " anna live?"
    model = tiny_models.parrot(small_tokenizer, [*small_tokenizer.encode(text + after), small_tokenizer.eos_id])
    session = ChatSession(model, small_tokenizer, seed=0)
    out, notes, prompts = talk(session, "/base", text, "/base", interactive=True)
    assert out == "where does anna live?\n\n"
    assert prompts == ["you> ", "text> ", "text> ", "you> "]
    assert "without chat template" in notes
    assert talk(session, "/base", text)[0] == "where does anna live?\n"


def test_retry_answers_the_last_message_again(small_tokenizer):
    session = parrot_session(small_tokenizer)
    out, notes, _ = talk(session, "/retry", "a", "/retry")
    assert out == " yes\n yes\n"
    assert "no message to answer again" in notes
    assert session.turns == [Turn("a", " yes")]


def test_system_and_temperature_change_the_session(small_tokenizer):
    session = parrot_session(small_tokenizer)
    talk(session, "/system be kind ", "/temperature 0.25")
    assert (session.system, session.temperature) == ("be kind", 0.25)
    talk(session, "/system")
    assert session.system is None


@pytest.mark.parametrize("line", ["/temperature", "/temperature warm", "/temperature -1", "/temperature nan"])
def test_an_invalid_temperature_is_reported_and_changes_nothing(small_tokenizer, line):
    session = parrot_session(small_tokenizer)
    out, notes, _ = talk(session, line, "a")
    assert "number" in notes
    assert session.temperature == 0.7
    assert out == " yes\n"


def test_an_unknown_command_is_reported_and_is_not_a_message(small_tokenizer):
    out, notes, _ = talk(parrot_session(small_tokenizer), "/rest")
    assert out == ""
    assert "unknown command /rest" in notes and "/help" in notes


def test_help_lists_every_command(small_tokenizer):
    _, notes, _ = talk(parrot_session(small_tokenizer), "/help")
    for command in ("/reset", "/base", "/system TEXT", "/temperature X", "/retry", "/help", "/quit"):
        assert command in notes


def test_a_message_too_long_is_reported_and_the_chat_continues(small_tokenizer):
    out, notes, _ = talk(parrot_session(small_tokenizer), "yes " * 200, "a")
    assert out == " yes\n"
    assert "context of 128" in notes


def test_forgetting_is_reported_with_the_number_of_turns(small_tokenizer):
    session = parrot_session(small_tokenizer)
    session.turns = [Turn("where does anna live? " * 2, " yes")] * 12
    before = len(session.turns)
    _, notes, _ = talk(session, "a")
    forgotten = before + 1 - len(session.turns)
    assert forgotten > 1
    assert f"the oldest {forgotten} turns were forgotten" in " ".join(notes.split())


def test_an_answer_that_is_cut_off_is_reported(small_tokenizer):
    _, notes, _ = talk(parrot_session(small_tokenizer, max_new_tokens=1), "a")
    assert "cut off" in notes


def test_a_models_escape_sequences_do_not_reach_a_terminal_but_a_pipe_gets_all(small_tokenizer):
    answer = "no\x1b[2J\r\n\tyes"
    session = parrot_session(small_tokenizer, answer)
    assert talk(session, "a", colors=True)[0] == "no\ufffd[2J\n\tyes\n"
    assert talk(session, "a")[0] == answer + "\n"


def test_several_lines_are_one_message_at_a_keyboard(small_tokenizer):
    session = parrot_session(small_tokenizer)
    _, _, prompts = talk(session, "a\\", "b", '"""', "c", "", "d", '"""', interactive=True)
    assert [turn.user for turn in session.turns] == ["a\nb", "c\n\nd"]
    assert prompts == ["you> ", "...> ", "you> ", "...> ", "...> ", "...> ", "...> ", "you> "]


def test_a_line_from_a_pipe_is_a_message_regardless_of_its_end(small_tokenizer):
    session = parrot_session(small_tokenizer)
    talk(session, "a\\", "b")
    assert [turn.user for turn in session.turns] == ["a\\", "b"]


def test_settings_change_during_a_chat_and_are_shown(small_tokenizer):
    session = parrot_session(small_tokenizer)
    _, notes, _ = talk(
        session, "/set temperature=.25", "/set top_p = 0.5", "/set max_new_tokens=7", "/set seed=3", "/set"
    )
    assert (session.temperature, session.top_p, session.max_new_tokens, session.seed) == (0.25, 0.5, 7, 3)
    assert "temperature 0.25, top_p 0.5, max_new_tokens 7, seed 3" in " ".join(notes.split())


@pytest.mark.parametrize(
    "line",
    ["/set top_p=2", "/set max_new_tokens=0", "/set seed=1.5", "/set color=3", "/set temperature", "/set seed=x"],
)
def test_an_invalid_setting_changes_nothing(small_tokenizer, line):
    session = parrot_session(small_tokenizer)
    before = (session.temperature, session.top_p, session.max_new_tokens, session.seed)
    out, notes, _ = talk(session, line, "a")
    assert (session.temperature, session.top_p, session.max_new_tokens, session.seed) == before
    assert ("expected" in notes or "expects" in notes) and out == " yes\n"


def test_save_appends_the_conversation_to_a_file_of_dialogues(small_tokenizer, tmp_path):
    session, file = parrot_session(small_tokenizer), tmp_path / "talks.jsonl"
    _, notes, _ = talk(
        session, f"/save {file}", "/system be kind", "é", f"/save {file}", "/reset", "b", f"/save {file}"
    )
    assert "no conversation to save yet" in notes and "added 1 turn to" in notes
    first, second = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    system = {"role": "system", "content": "be kind"}
    answer = {"role": "assistant", "content": " yes"}
    assert first == {"messages": [system, {"role": "user", "content": "é"}, answer]}
    assert second == {"messages": [system, {"role": "user", "content": "b"}, answer]}


@pytest.mark.parametrize("name", ["", "talks.txt", "missing/talks.jsonl"])
def test_a_file_that_cannot_be_saved_to_is_reported_and_the_chat_continues(
    small_tokenizer, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    out, notes, _ = talk(parrot_session(small_tokenizer), "a", f"/save {name}", "b")
    assert out == " yes\n yes\n" and notes.startswith("(")
    assert not list(tmp_path.iterdir())


def test_an_answer_by_techniques_shows_how_it_came_about_and_what_it_took(small_tokenizer):
    """The prompt is bos, the user's sign, a, the end and the assistant's sign; each answer is yes and its end."""
    lines = "/technique self_consistency samples=2", "a", "/technique telepathy", "/technique", "b"
    out, notes, _ = talk(parrot_session(small_tokenizer), *lines)
    assert out == " yes\n yes\n"
    chosen, votes, spent, refused, none = notes.splitlines()
    assert chosen == "(answers by: self_consistency samples=2)" and votes == "(self_consistency: yes ×2)"
    assert spent == "(5 tokens read, 4 sampled)"
    assert "'telepathy', expected one of few_shot" in refused and none.startswith("(no techniques")
