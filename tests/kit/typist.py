"""A person at a terminal whose lines are known beforehand."""

from collections.abc import Callable, Iterable


def typist(lines: Iterable[str | BaseException]) -> tuple[Callable[[str], str], list[str]]:
    """(read, prompts): `read` returns the lines in turn, raises those that are exceptions, and EOFError after the last;
    prompts collects what it was asked with."""
    left, prompts = list(lines), []

    def read(prompt: str) -> str:
        prompts.append(prompt)
        if not left:
            raise EOFError
        line = left.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    return read, prompts
