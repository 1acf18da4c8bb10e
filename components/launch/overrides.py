"""Overrides on the command line that name a path are taken literally, regardless of Hydra's grammar.

Imports nothing heavy, since train.py calls it before anything else.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATHS = re.compile(
    r"(\+{0,2})((?:artifacts|files|paths|reads)\.[^=]+|data\.(?:path|root)|(?:model|reward|judge)\.path|resume|run)=(.*)",
    re.S,
)
FUNCTIONS = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag|str|extend_list)\(.*\)", re.S)
SWEEPS = ("-m", "--multirun", "hydra.mode=MULTIRUN")


def as_typed(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the value of each key that takes a path in Hydra's quotes, so that Hydra takes it literally.

    null, values that are already quoted and, in a sweep (-m), functions such as choice(…) keep their meaning. In a
    sweep a comma separates two values, unless a file or folder of the whole name exists.
    """
    sweep = any(argument in SWEEPS for argument in arguments)
    return [_as_typed(argument, sweep) for argument in arguments]


def typed(argument: str) -> str:
    """The inverse of `as_typed` for one argument: what a user types, without Hydra's quotes."""
    match = PATHS.fullmatch(argument)
    plain = f"{match[1]}{match[2]}={match[3][1:-1]}" if match else argument
    return plain if _as_typed(plain, sweep=False) == argument else argument


def written(hydra: Any) -> list[str]:
    """The overrides of a job as written, without Hydra's own. hydra: its HydraConfig, whose list is read with every
    interpolation resolved: a value with the = of a sweep's folder is then no override."""
    from omegaconf import OmegaConf

    overrides: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    return list(overrides)


def quoted(value: str) -> str:
    """A string in Hydra's grammar."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)  # a backslash is special only before a quote
    escaped = re.sub(r"(\\+)\Z", r"\1\1", escaped)
    return f"'{escaped}'"


def _as_typed(argument: str, sweep: bool) -> str:
    match = PATHS.fullmatch(argument)
    if not match:
        return argument
    prefix, key, value = match.groups()
    if sweep and FUNCTIONS.fullmatch(value):
        return argument
    several = sweep and "," in value and not Path(value).exists() and not _is_quoted(value)
    parts = re.findall(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^,]+", value) if several else [value]
    return f"{prefix}{key}=" + ",".join(map(_quoted_path, parts))


def _quoted_path(value: str) -> str:
    plain = value in ("", "null", "???") or _is_quoted(value)
    return value if plain else quoted(value)


def _is_quoted(value: str) -> bool:
    """Whether the value is a single string in Hydra's quotes: every quote of the same kind inside it is escaped."""
    return re.fullmatch(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", value, re.S) is not None
