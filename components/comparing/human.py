"""A person ranks completions, at a keyboard or through a pipe."""

import random
import string
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from rich.console import Console

from components.comparing.judges import NO_COLUMNS, Columns
from components.data.records.formats import Message
from components.system.visible import VISIBLE


class Undo(Exception):
    """The person undoes the last decision."""


class Stop(Exception):
    """The person stops, or the input ends."""


class HumanJudge:
    """Shows a prompt and its completions, lettered in random order, and asks for a ranking until it is valid.

    read(prompt) -> str: one line; raises EOFError at the end. interactive: a person is at the keyboard and sees an
    input prompt; with a pipe the same is printed without one.
    """

    def __init__(
        self,
        *,
        console: Console | None = None,
        interactive: bool | None = None,
        read: Callable[[str], str] = input,
    ) -> None:
        self.console = console or Console()
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty() if interactive is None else interactive
        self.read = read
        if self.interactive:
            with suppress(ImportError):
                import readline  # noqa: F401  (gives input() its line editing and history)

    def rank(
        self, prompt: list[Message], completions: Sequence[str], rng: random.Random, columns: Columns = NO_COLUMNS
    ) -> list[int] | None:
        """A rank for each completion, 0 is best, ties are equal; None: skipped.

        Raises Undo, Stop (also when the input ends, and for Ctrl-C), and ValueError for more completions than letters.
        """
        if len(completions) > len(string.ascii_lowercase):
            raise ValueError(
                f"judge=human: got {len(completions)} completions, expected at most 26, one per letter. "
                "Lower stage.completions"
            )
        order = list(range(len(completions)))
        rng.shuffle(order)
        for message in prompt:
            self._say(f"{message['role']}: {message['content']}", "bold")
        for letter, i in zip(string.ascii_lowercase, order):
            self._say(f"  {letter}  {completions[i]}".replace("\n", "\n     "))
        given = self._ask(len(completions))
        return None if given is None else [given[order.index(i)] for i in range(len(completions))]

    def note(self, text: str) -> None:
        """Prints a remark that is not part of what is judged."""
        self._say(text, "dim")

    def _ask(self, count: int) -> list[int] | None:
        """Ranks of the completions in the order of their letters."""
        while True:
            try:
                line = self.read("ranking> " if self.interactive else "")
            except (EOFError, KeyboardInterrupt):
                raise Stop from None
            command = line.strip().lower()
            if command == "s":
                return None
            if command in ("u", "q"):
                raise Undo if command == "u" else Stop
            try:
                return ranking(line, count)
            except ValueError as error:
                self.note(f"{error}. {usage(count)}")

    def _say(self, text: str, style: str | None = None) -> None:
        shown = text.translate(VISIBLE) if self.console.is_terminal else text
        self.console.print(shown, style=style, markup=False, highlight=False, soft_wrap=True)


def ranking(line: str, count: int) -> list[int]:
    """Ranks of the first `count` letters a, b, …: "b a=c d" is [1, 0, 1, 2].

    Letters are listed from best to worst, and = joins equal ones; spaces, commas and > between them are ignored.
    Raises ValueError with the reason if a line does not name each letter once.
    """
    letters = string.ascii_lowercase[:count]
    ranks: dict[str, int] = {}
    tied = False
    for sign in line.lower():
        if sign == "=":
            if not ranks or tied:
                raise ValueError("= belongs between two letters")
            tied = True
        elif sign in letters:
            if sign in ranks:
                raise ValueError(f"{sign} appears twice")
            ranks[sign] = max(ranks.values(), default=-1) + (0 if tied else 1)
            tied = False
        elif not (sign.isspace() or sign in ",>"):
            raise ValueError(f"{sign} is not one of {' '.join(letters)}")
    missing = [letter for letter in letters if letter not in ranks]
    if missing:
        raise ValueError(f"{' '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    if tied:
        raise ValueError("= belongs between two letters")
    return [ranks[letter] for letter in letters]


def usage(count: int) -> str:
    """What can be typed, with an example for `count` completions."""
    letters = string.ascii_lowercase[:count]
    example = "b a" if count == 2 else " ".join(["b", "a=c", *letters[3:]])
    return f"Best first, such as {example}; = joins equal ones; s skips, u undoes the last one, q quits"
