"""A chat in the terminal, at a keyboard or through a pipe."""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

from rich.console import Console

from components.serving import keyboard
from components.serving.session import SETTINGS, Answer, ChatSession
from components.system.visible import VISIBLE


class Terminal:
    """Reads lines and prints answers until the input ends or /quit.

    interactive: a person is at the keyboard: prompts are shown, and Ctrl-C stops an answer or, at the prompt, quits.
    Otherwise each line is a message, only answers go to `answers`, one after another, and notes go to `notes`.
    read(prompt) -> str: one line; raises EOFError at the end.
    """

    def __init__(
        self,
        session: ChatSession,
        *,
        answers: Console,
        notes: Console,
        interactive: bool,
        read: Callable[[str], str] = input,
    ) -> None:
        self.session, self.answers, self.notes = session, answers, notes
        self.interactive, self.read = interactive, keyboard.multiline(read) if interactive else read
        self.commands: dict[str, tuple[str, str, Callable[[str], None]]] = {
            "/reset": ("", "clear the conversation", self._reset),
            "/retry": ("", "answer the last message again", self._retry),
            "/system": ("TEXT", "set the system message; without TEXT: remove it", self._system),
            "/temperature": ("X", "0: always the likeliest token; 1: as the model was trained", self._temperature),
            "/set": ("NAME=X", f"{', '.join(SETTINGS)}; without NAME=X: show them", self._set),
            "/technique": ("NAME X=Y", "votes, best of n, …: docs/techniques.md; without NAME: none", self._technique),
            "/save": ("FILE", "append the conversation to a .jsonl file for stage=sft data=chat", self._save),
            "/base": ("", "toggle: raw continuation of the text, without chat template or history", self._base),
            "/help": ("", "show this list", self._help),
            "/quit": ("", "quit (also Ctrl-D, or Ctrl-C at the prompt)", self._quit),
        }
        self.running = True

    def run(self) -> None:
        """Runs the conversation to its end."""
        while self.running:
            try:
                line = self.read(self._mark() if self.interactive else "")
            except (EOFError, KeyboardInterrupt):
                if self.interactive:
                    self.answers.out()
                return
            try:
                self._run_command(line)
            except (ValueError, OSError) as error:  # caused by the user: an invalid number, a message that is too long
                self.note(str(error))

    def note(self, text: str) -> None:
        """Prints a remark that is not part of the conversation."""
        self.notes.out(f"({text})", style="dim", highlight=False)

    def _run_command(self, line: str) -> None:
        if not line.startswith("/"):
            if line.strip():
                self._show(line, self.session.ask(line))
            return
        name, _, argument = line.strip().partition(" ")
        if name not in self.commands:
            raise ValueError(
                f"unknown command {name}; /help lists them. To send a message that starts with /, put a space before it"
            )
        self.commands[name][2](argument.strip())

    def _show(self, text: str, answer: Answer) -> None:
        """Prints an answer as it is sampled; in base mode, after the text that it continues."""
        if answer.forgotten:
            turns = "turn was" if answer.forgotten == 1 else f"{answer.forgotten} turns were"
            self.note(f"the context is full: the oldest {turns} forgotten")
        if self.session.base:
            self._write(text, style="dim" if self.interactive else None)
        elif self.interactive:
            self._write("bot> ", style="bold cyan")
        try:
            for piece in answer.chunks:
                self._write(piece)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            self._write(" …")
            return
        finally:
            answer.chunks.close()  # type: ignore[attr-defined]
            self.answers.out()
        for technique, said in self.session.trace:
            self.note(f"{technique}: {said}")
        if self.session.spent is not None:
            self.note(f"{self.session.spent.read:,} tokens read, {self.session.spent.sampled:,} sampled")
        if self.session.cut:
            self.note("cut off here: no room for more tokens")

    def _write(self, text: str, style: str | None = None) -> None:
        shown = text.translate(VISIBLE) if self.answers.is_terminal else text
        if style:
            self.answers.out(shown, end="", style=style, highlight=False)
        else:  # not through rich, which changes tabs and line endings
            self.answers.file.write(shown)
            self.answers.file.flush()

    def _mark(self) -> str:
        return "text> " if self.session.base else "you> "

    def _reset(self, _: str) -> None:
        self.session.reset()
        self.note("new conversation")

    def _retry(self, _: str) -> None:
        text = self.session.retried_text or ""
        self._show(text, self.session.retry())

    def _system(self, text: str) -> None:
        self.session.system = text or None
        self.note(f"system text: {text}" if text else "no system text")

    def _temperature(self, text: str) -> None:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"/temperature expects a number, such as /temperature 0.7; got {text!r}") from None
        self.session.set_temperature(value)
        self.note(f"temperature {value:g}")

    def _set(self, text: str) -> None:
        name, _, value = text.partition("=")
        if text:
            try:
                number = float(value)
            except ValueError:
                raise ValueError(f"/set expects NAME=NUMBER, such as /set temperature=0.7; got {text!r}") from None
            self.session.set(name.strip(), number)
        self.note(", ".join(f"{name} {getattr(self.session, name)}" for name in SETTINGS))

    def _technique(self, line: str) -> None:
        techniques = self.session.techniques
        techniques.set(line)
        self.note(f"answers by: {line}" if line else "no techniques: answers as they are sampled")

    def _save(self, name: str) -> None:
        if not name.endswith(".jsonl"):
            raise ValueError(f"/save expects a .jsonl file, such as /save talks.jsonl; got {name!r}")
        if not self.session.turns:
            raise ValueError("there is no conversation to save yet")
        line = json.dumps({"messages": self.session.messages()}, ensure_ascii=False)
        with Path(name).expanduser().open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
        count = len(self.session.turns)
        self.note(f"added {count} {'turn' if count == 1 else 'turns'} to {name}")

    def _base(self, _: str) -> None:
        self.session.base = not self.session.base
        self.note(
            "base mode: your text is continued verbatim, without chat template or history; /base ends it"
            if self.session.base
            else "chat mode: messages go through the chat template"
        )

    def _quit(self, _: str) -> None:
        self.running = False

    def _help(self, _: str) -> None:
        for name, (argument, meaning, _run_command) in self.commands.items():
            self.notes.out(f"  {name + ' ' + argument:<16} {meaning}", highlight=False)


def run(session: ChatSession, *, banner: str, note: str | None = None) -> None:
    """Chats over the process's own input and output. banner: shown only to a person; note: also with a pipe."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError):  # replaced streams (tests, notebooks) have no encoding to set
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    terminal = Terminal(session, answers=Console(), notes=Console(stderr=True), interactive=interactive)
    if interactive:
        terminal.notes.out(banner, highlight=False)
        terminal.note(f"/help lists the commands; {keyboard.FENCE} starts and ends a multi-line message; /quit quits")
    if note:
        terminal.note(note)
    words = [*terminal.commands, *(f"/set {name}=" for name in SETTINGS)]
    with keyboard.Editing(words, keyboard.history_file()) if interactive else nullcontext():
        terminal.run()
