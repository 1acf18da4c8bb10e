"""Settings as plain Python, as JSON and other people's code expect them."""

from collections.abc import Mapping, Sequence
from typing import Any


def plain(settings: Any) -> Any:
    """Mappings and sequences, of whatever kind, as dicts and lists, all the way down; anything else as it is."""
    if isinstance(settings, Mapping):
        return {name: plain(value) for name, value in settings.items()}
    if isinstance(settings, Sequence) and not isinstance(settings, str | bytes):
        return [plain(value) for value in settings]
    return settings
