"""Checks that the fields of a config.json can be a model's shape at all."""

import math
from typing import Any

COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "n_embd",
    "n_layer",
    "n_head",
    "n_positions",
)
OPTIONAL_COUNTS = ("num_key_value_heads", "head_dim", "n_inner")  # absent, null or 0: derived from the others
POSITIVE = ("rms_norm_eps", "rope_theta", "layer_norm_epsilon")


def check_shape(fields: dict[str, Any]) -> None:
    """Raises ValueError naming the first field whose type or range no shape can have; absent ones are not checked."""
    for name in (*COUNTS, *OPTIONAL_COUNTS):
        value = fields.get(name)
        if name not in fields or (name in OPTIONAL_COUNTS and value in (None, 0)):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"config.json: {name}: expected a whole number of at least 1, got {value!r}")
    for name in (*POSITIVE, "initializer_range"):
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
            raise ValueError(f"config.json: {name}: expected a number above 0, got {value!r}")
        if name in POSITIVE and value == 0:
            raise ValueError(f"config.json: {name}: expected a number above 0, got 0")
    for name in ("rope_parameters", "rope_scaling"):
        if not isinstance(fields.get(name) or {}, dict):
            raise ValueError(f"config.json: {name}: expected an object, got {fields[name]!r}")
