"""JSON in which no object has a field twice, because it would be ambiguous which value is meant."""

import json
from typing import Any

from components.data.records.errors import FormatError


class _Twice(ValueError):
    """An object has a field twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Twice(f"an object with two fields {twice!r}")
    return made


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def what_is_wrong(error: Exception) -> str:
    """A description of a decoder's error, for an error message."""
    if isinstance(error, json.JSONDecodeError):
        return f"an error: {error.msg} at column {error.colno}"
    if isinstance(error, _Twice):
        return str(error)
    if isinstance(error, RecursionError):
        return "brackets within brackets without end"
    return "a number with too many digits"


def parsed(value: Any, name: str) -> Any:
    """The list or object that a string contains as JSON; anything else unchanged."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return DECODER.decode(value)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name} as JSON", what_is_wrong(error)) from None
