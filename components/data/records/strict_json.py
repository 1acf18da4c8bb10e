"""JSON in which no object has one field twice: of the two values nobody knows which is meant."""

import json
from typing import Any


class _Twice(ValueError):
    """A field that an object has twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Twice(f"an object with two fields {twice!r}")
    return made


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def what_is_wrong(error: Exception) -> str:
    """What an error of the decoder says of the text, for an error message."""
    if isinstance(error, json.JSONDecodeError):
        return f"an error in it: {error.msg} at column {error.colno}"
    if isinstance(error, _Twice):
        return str(error)
    if isinstance(error, RecursionError):
        return "brackets within brackets without end"
    return "a number of too many digits"
