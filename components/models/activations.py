"""Bytes that a forward pass keeps for its backward pass, or a KV cache of each token, by the model's shape."""

from typing import NamedTuple

from components.models.config import GPTConfig


class Activations(NamedTuple):
    """Estimated bytes. kept: if every layer keeps its own. recomputed: if only the inputs of layers are kept, and what
    is inside of them for one layer at a time."""

    kept: float
    recomputed: float


def activations_of(config: GPTConfig, tokens: int, *, width: int, lean: bool) -> Activations:
    """The activations of a forward pass over `tokens` tokens, without logits.

    width: bytes of a number that a product reads. lean: whether inputs of products are recomputed anyway, by
    models.projection or by a compiler.
    """
    residual, inside = 4 * config.hidden_size, numbers_in_layer(config, lean=lean) * width
    inputs = tokens * (config.num_hidden_layers + 2) * residual
    return Activations(inputs + tokens * config.num_hidden_layers * inside, inputs + tokens * inside)


def numbers_in_layer(config: GPTConfig, *, lean: bool) -> int:
    """Numbers that a layer keeps of each token for its backward pass, besides its input."""
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    least = config.hidden_size + 2 * (queries + keys) + 2 * config.intermediate_size
    lean = lean and config.norm == "rms" and config.mlp == "swiglu"
    # the normed inputs before and after their scale, queries and keys before their rotation, silu(gate), its product
    return least if lean else least + 4 * config.hidden_size + queries + 2 * keys + 2 * config.intermediate_size


def copied_weights(config: GPTConfig, *, width: int, mixed: bool) -> float:
    """Bytes of the copies of matrices that a layer keeps for its backward pass unless it is compiled: in mixed
    precision of all of them, `width` bytes a number, else of those that are joined into one (see models.layer)."""
    shapes = config.projections()
    copied = [name for name in shapes if mixed or name not in ("o_proj", "down_proj")]
    return float(width * sum(shapes[name][0] * shapes[name][1] for name in copied))


def cached_bytes(config: GPTConfig, *, width: int, on_cpu: bool) -> int:
    """Bytes that a KV cache holds of each token: its keys and values in all layers, on a CPU in float32 (see KVCache).

    width: bytes of a number that a product reads.
    """
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return numbers * max(width, 4 if on_cpu else 0)


def output_gradient(config: GPTConfig) -> float:
    """Bytes of the gradient of a trained output matrix: a sum over chunks, and what is added to it, in fp32."""
    return 2.0 * 4 * config.vocab_size * config.hidden_size
