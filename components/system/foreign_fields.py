"""What a field of another program's file may hold that nobody here knows."""

from typing import Any

EMPTY: tuple[Any, ...] = (None, {}, [], "")  # as if the field were not there
