"""Values that an unsupported field of another program's file can safely have."""

from typing import Any

EMPTY: tuple[Any, ...] = (None, {}, [], "")  # the same as an absent field
