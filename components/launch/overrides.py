"""Overrides of the command line that name a path: taken as they are typed, whatever Hydra's grammar makes of them.

Imports nothing heavy: train.py asks before anything else happens.
"""

import re
from collections.abc import Sequence
from pathlib import Path

PATHS = re.compile(
    r"(\+{0,2})((?:artifacts|files|paths|reads)\.[^=]+|data\.(?:path|root)|model\.path|resume|run)=(.*)", re.S
)
FUNCTIONS = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag|str|extend_list)\(.*\)", re.S)
SWEEPS = ("-m", "--multirun", "hydra.mode=MULTIRUN")


def as_typed(arguments: Sequence[str]) -> list[str]:
    """The arguments with every value of a key that takes a path in Hydra's quotes, so that it is a path to Hydra too.

    null, what is quoted already, and in a sweep (-m) a function such as choice(…) keep their meaning there. In a sweep
    a comma stands between two values, unless a file or folder of the whole name exists.
    """
    sweep = any(argument in SWEEPS for argument in arguments)
    return [_as_typed(argument, sweep) for argument in arguments]


def typed(argument: str) -> str:
    """What a user types for an argument that `as_typed` gave, without Hydra's quotes."""
    found = PATHS.fullmatch(argument)
    plain = f"{found[1]}{found[2]}={found[3][1:-1]}" if found else argument
    return plain if _as_typed(plain, sweep=False) == argument else argument


def quoted(value: str) -> str:
    """A string in Hydra's grammar."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)  # only before a quote is a backslash anything else than itself
    escaped = re.sub(r"(\\+)\Z", r"\1\1", escaped)
    return f"'{escaped}'"


def _as_typed(argument: str, sweep: bool) -> str:
    found = PATHS.fullmatch(argument)
    if not found:
        return argument
    prefix, key, value = found.groups()
    if sweep and FUNCTIONS.fullmatch(value):
        return argument
    several = sweep and "," in value and not Path(value).exists() and not _is_quoted(value)
    parts = re.findall(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^,]+", value) if several else [value]
    return f"{prefix}{key}=" + ",".join(map(_one, parts))


def _one(value: str) -> str:
    plain = value in ("", "null", "???") or _is_quoted(value)
    return value if plain else quoted(value)


def _is_quoted(value: str) -> bool:
    """Whether it is one string in Hydra's quotes: no quote of its kind within that is not escaped."""
    return re.fullmatch(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", value, re.S) is not None
