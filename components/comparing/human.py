"""A person ranks completions, at a keyboard or with lines from a pipe."""

import random
import string
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from rich.console import Console

from components.data.records.formats import Message
from components.system.visible import VISIBLE


class Undo(Exception):
    """The person takes the last decision back."""


class Stop(Exception):
    """The person, or the input, has come to an end."""


class HumanJudge:
    """Shows a prompt and its completions, lettered in random order, and asks for a ranking until it can be read.

    read(prompt) -> str: one line; raises EOFError at the end. interactive: a person is at the keyboard, and is shown
    what to type; with a pipe the same is printed without it.
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

    def rank(self, prompt: list[Message], completions: Sequence[str], rng: random.Random) -> list[int] | None:
        """A rank per completion, 0 the best, ties equal; None: skipped.

        Raises Undo, Stop (also where the input ends, and for Ctrl-C), ValueError for more completions than letters.
        """
        if len(completions) > len(string.ascii_lowercase):
            raise ValueError(
                f"judge=human: got {len(completions)} completions, expected at most 26: one per letter. "
                "Lower stage.completions"
            )
        order = list(range(len(completions)))
        rng.shuffle(order)
        for message in prompt:
            self._say(f"{message['role']}: {message['content']}", "bold")
        for letter, place in zip(string.ascii_lowercase, order):
            self._say(f"  {letter}  {completions[place]}".replace("\n", "\n     "))
        given = self._ask(len(completions))
        return None if given is None else [given[order.index(place)] for place in range(len(completions))]

    def note(self, text: str) -> None:
        """A remark that is nothing to judge."""
        self._say(text, "dim")

    def _ask(self, count: int) -> list[int] | None:
        """Ranks of the completions as they are lettered."""
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
    """Ranks of letters a, b, …, of which there are `count`: "b a=c d" is [1, 0, 1, 2].

    Letters stand from best to worst, = joins equal ones; spaces, commas and > between them say nothing more.
    Raises ValueError with the reason for a line that does not name each letter once.
    """
    letters = string.ascii_lowercase[:count]
    ranks: dict[str, int] = {}
    tied = False
    for sign in line.lower():
        if sign == "=":
            if not ranks or tied:
                raise ValueError("= stands between two letters")
            tied = True
        elif sign in letters:
            if sign in ranks:
                raise ValueError(f"{sign} is there twice")
            ranks[sign] = max(ranks.values(), default=-1) + (0 if tied else 1)
            tied = False
        elif not (sign.isspace() or sign in ",>"):
            raise ValueError(f"{sign} is none of {' '.join(letters)}")
    missing = [letter for letter in letters if letter not in ranks]
    if missing:
        raise ValueError(f"{' '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    if tied:
        raise ValueError("= stands between two letters")
    return [ranks[letter] for letter in letters]


def usage(count: int) -> str:
    """What may be typed, with an example of as many letters as there are completions."""
    letters = string.ascii_lowercase[:count]
    example = "b a" if count == 2 else " ".join(["b", "a=c", *letters[3:]])
    return f"Best first, such as {example}; = between equal ones; s skips, u undoes the last, q stops"
