"""Input from a person at a keyboard: line history across chats, Tab completion, multi-line messages."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

LINES = 1000  # of history to keep
FENCE = '"""'


def multiline(read: Callable[[str], str]) -> Callable[[str], str]:
    """A reader of messages: a line that ends in a backslash continues on the next one, and text between two lines that
    consist of a FENCE is taken verbatim."""

    def message(prompt: str) -> str:
        line = read(prompt)
        if line.strip() == FENCE:
            lines: list[str] = []
            while (line := read("...> ")).strip() != FENCE:
                lines.append(line)
            return "\n".join(lines)
        parts = [line]
        while parts[-1].endswith("\\"):
            parts[-1] = parts[-1][:-1]
            parts.append(read("...> "))
        return "\n".join(parts)

    return message


def history_file() -> Path:
    """Where the chat keeps what was typed, in the folder that the XDG standard gives."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "gradus" / "history"


def completions(line: str, words: Sequence[str]) -> list[str]:
    """The words that start with the line typed so far."""
    return [word for word in words if line and word.startswith(line)]


class Editing:
    """A context in which input() has line editing, a history file and word completion, if the system has `readline`;
    otherwise it does nothing. A history that cannot be read or written is ignored, so that a chat does not fail."""

    def __init__(self, words: Sequence[str], file: Path) -> None:
        self.words, self.file = words, file

    def __enter__(self) -> None:
        try:
            import readline
        except ImportError:
            return
        readline.set_completer_delims("\n")  # complete whole lines, including a command's argument
        readline.set_completer(self._complete)
        apple = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if apple else "tab: complete")
        readline.set_history_length(LINES)
        with suppress(OSError):
            readline.read_history_file(self.file)

    def __exit__(self, *error: object) -> None:
        with suppress(ImportError, OSError):
            import readline

            self.file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(self.file)

    def _complete(self, line: str, number: int) -> str | None:
        words = completions(line, self.words)
        return words[number] if number < len(words) else None
