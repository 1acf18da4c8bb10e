"""Settings by their earlier names, so that artifacts and checkpoints made under those stay up to date."""

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "callbacks.spike_guard.most": "callbacks.spike_guard.max_skips",
    "data.draw": "data.answers_seed",
    "comparisons.draw": "comparisons.answers_seed",
}


def as_named_now(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of an artifact or checkpoint, under the current names of its settings."""
    return {RENAMED.get(name, name): value for name, value in inputs.items()}
