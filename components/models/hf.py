"""Reads and writes config.json of the Hugging Face families that this decoder implements.

Converts between the file's fields and the arguments of GPTConfig. A feature that the decoder lacks is refused by name,
and so is an unknown field (hf_fields): with it ignored, the model could compute something else.
"""

from typing import Any

from components.models import hf_fields

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gpt2")
NAMES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gpt2": "GPT2"}
MISSING = {  # a family's defaults for absent fields; num_key_value_heads otherwise defaults to the query heads
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28, "head_dim": 128},
}
SCALINGS = {
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}


def checked_scaling(scaling: dict[str, Any]) -> dict[str, Any] | None:
    """A rope_scaling with its kind under "rope_type"; None if it scales nothing.

    Raises ValueError naming an unknown kind, or the fields if some are missing or unexpected.
    """
    given = dict(scaling)
    kinds = {given.pop(name) for name in ("rope_type", "type") if name in given}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind == "default" and not given:
        return None
    if kind not in SCALINGS:
        raise ValueError(f"rope scaling {kind!r} is not supported; known: {', '.join(SCALINGS)}")
    if given.keys() != SCALINGS[kind]:
        raise ValueError(f"rope scaling {kind!r}: expected {sorted(SCALINGS[kind])}, got {sorted(given)}")
    return {"rope_type": kind, **given}


def shape_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The arguments of GPTConfig that a config.json describes.

    Raises ValueError for a family, field or value that is not supported, KeyError for a missing field.
    """
    family = fields.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"config.json: model_type {family!r}; known: {', '.join(FAMILIES)}")
    try:
        hf_fields.check(fields, family)
        return _gpt2_shape(fields) if family == "gpt2" else _llama_shape(fields, family)
    except ValueError as error:
        raise ValueError(f"config.json: {error} ({family})") from None


def _llama_shape(fields: dict[str, Any], family: str) -> dict[str, Any]:
    fields = {**MISSING.get(family, {}), **fields}
    heads, bias = fields["num_attention_heads"], bool(fields.get("attention_bias", False))
    theta, scaling = _rope(fields)
    windowed = family == "mistral" or (family != "llama" and fields.get("use_sliding_window", False))
    windowed = windowed and fields["sliding_window"] is not None
    if not windowed and family.startswith("qwen") and set(fields.get("layer_types") or ()) - {"full_attention"}:
        raise ValueError(f"layer_types {fields['layer_types']} without use_sliding_window is not supported")
    return {
        "vocab_size": fields["vocab_size"],
        "hidden_size": fields["hidden_size"],
        "intermediate_size": fields["intermediate_size"],
        "num_hidden_layers": fields["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get("num_key_value_heads") or heads,
        "max_position_embeddings": fields["max_position_embeddings"],
        "head_dim": fields.get("head_dim") or 0,
        "rms_norm_eps": fields.get("rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": fields.get("tie_word_embeddings", False),
        "attention_bias": family == "qwen2" or (bias and family != "mistral"),
        "attention_output_bias": bias and family in ("llama", "qwen3"),
        "qk_norm": family == "qwen3",
        "sliding_window": fields["sliding_window"] if windowed else None,
        "max_window_layers": _first_windowed(fields) if windowed and family != "mistral" else 0,
        "model_type": "mistral" if family == "mistral" else "",  # the others follow from the shape
        "initializer_range": fields.get("initializer_range", 0.02),
    }


def _first_windowed(fields: dict[str, Any]) -> int:
    """The first layer with windowed attention. Raises ValueError if layer_types disagrees."""
    count, kinds = fields["num_hidden_layers"], fields.get("layer_types")
    first = fields["max_window_layers"]
    expected = ["full_attention" if layer < first else "sliding_attention" for layer in range(count)]
    if kinds is not None and list(kinds) != expected:
        raise ValueError(f"layer_types {kinds} do not match max_window_layers={first}, which is not supported")
    return first


def _rope(fields: dict[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling) from either form: rope_theta and rope_scaling, or both in rope_parameters."""
    old, new = (dict(fields.get(name) or {}) for name in ("rope_scaling", "rope_parameters"))
    nested = [name for name, value in {**old, **new}.items() if isinstance(value, dict)]
    if nested:
        raise ValueError(f"rope_parameters per layer type ({', '.join(nested)}) are not supported")
    thetas, scalings = {fields[n] for n in ("rope_theta",) if fields.get(n) is not None}, []
    partial = [fields.get("partial_rotary_factor")]
    for given in filter(None, (old, new)):
        partial.append(given.pop("partial_rotary_factor", None))
        theta = given.pop("rope_theta", None)
        thetas |= {theta} if theta is not None else set()
        if given.get("rope_type", given.get("type")) == "llama3":
            given.setdefault("original_max_position_embeddings", fields["max_position_embeddings"])
        scalings.append(checked_scaling(given) if given else None)
    if any(share not in (None, 1) for share in partial):
        raise ValueError(f"partial_rotary_factor {next(s for s in partial if s not in (None, 1))} is not supported")
    if len(thetas) > 1 or any(scaling != scalings[0] for scaling in scalings):
        raise ValueError(f"rope_parameters {new} contradict rope_theta {fields.get('rope_theta')}, rope_scaling {old}")
    return (thetas.pop() if thetas else 10000.0), (scalings[0] if scalings else None)


def _gpt2_shape(fields: dict[str, Any]) -> dict[str, Any]:
    width = fields["n_embd"]
    return {
        "vocab_size": fields["vocab_size"],
        "hidden_size": width,
        "intermediate_size": fields.get("n_inner") or 4 * width,
        "num_hidden_layers": fields["n_layer"],
        "num_attention_heads": fields["n_head"],
        "num_key_value_heads": fields["n_head"],
        "max_position_embeddings": fields["n_positions"],
        "rms_norm_eps": fields.get("layer_norm_epsilon", 1e-5),
        "tie_word_embeddings": fields.get("tie_word_embeddings", True),
        "attention_bias": True,
        "attention_output_bias": True,
        "norm": "layer",
        "positions": "learned",
        "mlp": "gelu",
        "initializer_range": fields.get("initializer_range", 0.02),
    }


def family_of(fields: dict[str, Any]) -> str:
    """The model_type whose classes compute what GPTConfig's fields describe. Raises ValueError if none does."""
    gpt2 = (fields["norm"], fields["positions"], fields["mlp"]) == ("layer", "learned", "gelu")
    llama = (fields["norm"], fields["positions"], fields["mlp"]) == ("rms", "rotary", "swiglu")
    qkv_bias, output_bias = fields["attention_bias"], fields["attention_output_bias"]
    even_heads = fields["num_key_value_heads"] * fields["head_dim"] == fields["hidden_size"]
    window = fields["sliding_window"] is not None
    possible = {
        "llama": llama and not fields["qk_norm"] and qkv_bias == output_bias and not window,
        "mistral": llama and not (fields["qk_norm"] or qkv_bias or output_bias or fields["max_window_layers"]),
        "qwen2": llama and not fields["qk_norm"] and qkv_bias and not output_bias,
        "qwen3": llama and fields["qk_norm"] and qkv_bias == output_bias,
        "gpt2": gpt2 and qkv_bias and output_bias and even_heads and not fields["qk_norm"],
    }
    wanted = fields["model_type"]
    families = [name for name in ([wanted] if wanted else possible) if possible.get(name)]
    if not families:
        shown = ("qk_norm", "attention_bias", "attention_output_bias", "norm", "positions", "mlp", "sliding_window")
        raise ValueError(
            f"model: no Hugging Face architecture {wanted or 'supported here'} has "
            + ", ".join(f"{name}={fields[name]}" for name in shown)
        )
    return families[0]


def written(fields: dict[str, Any], architecture: str) -> dict[str, Any]:
    """config.json for GPTConfig's `fields`; architecture: "CausalLM" or "SequenceClassification".

    Rotary settings are written in both forms. Raises ValueError for a combination that no family has.
    """
    family = family_of(fields)
    class_name = f"{NAMES[family]}For{architecture}"
    if family == "gpt2":
        name = "GPT2LMHeadModel" if architecture == "CausalLM" else class_name
        return {"model_type": family, "architectures": [name], **_gpt2_written(fields), "torch_dtype": "float32"}
    ours = ("qk_norm", "attention_output_bias", "norm", "positions", "mlp", "sliding_window", "max_window_layers")
    kept = {name: value for name, value in fields.items() if name not in (*ours, "model_type", "rope_scaling")}
    if family in ("mistral", "qwen2"):  # the architecture determines their biases, not a field
        kept.pop("attention_bias")
    if family != "llama":
        kept["sliding_window"] = fields["sliding_window"]
    if family.startswith("qwen"):
        kept["use_sliding_window"] = fields["sliding_window"] is not None
        kept["max_window_layers"] = fields["max_window_layers"]
    scaling = fields["rope_scaling"]
    kept |= {"rope_scaling": scaling} if scaling else {}
    kept["rope_parameters"] = {**(scaling or {"rope_type": "default"}), "rope_theta": fields["rope_theta"]}
    return {"model_type": family, "architectures": [class_name], "hidden_act": "silu", **kept, "torch_dtype": "float32"}


def _gpt2_written(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": fields["vocab_size"],
        "n_embd": fields["hidden_size"],
        "n_inner": fields["intermediate_size"],
        "n_layer": fields["num_hidden_layers"],
        "n_head": fields["num_attention_heads"],
        "n_positions": fields["max_position_embeddings"],
        "layer_norm_epsilon": fields["rms_norm_eps"],
        "activation_function": "gelu_new",
        "tie_word_embeddings": fields["tie_word_embeddings"],
        "initializer_range": fields["initializer_range"],
    }
