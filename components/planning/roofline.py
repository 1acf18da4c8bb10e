"""A training step by part: its FLOPs, the bytes that it moves, and the least time that a device needs for both."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from components.models.config import GPTConfig
from components.planning import hardware

CHUNK = 2**27  # logits at a time on a GPU, as in functional.output_layer
# Compiled, functional.output_layer reads bf16 logits for the sum of their exponentials, their largest, the number of
# those and the gradient, and writes the gradient: at most, since a row can still be in a cache. Uncompiled it is 44.
BYTES_PER_LOGIT = 10


class Device(NamedTuple):
    """A GPU by its data sheet. flops: of dense bf16 matrix products, per second; bandwidth: of its memory, in bytes per
    second."""

    name: str
    flops: float
    bandwidth: float


DEVICES = tuple(Device(h.name, h.flops, h.bandwidth) for h in map(hardware.load, ("h100", "h200", "a100_80")))


class Kernel(NamedTuple):
    """What one kernel, or several alike, executes and moves to and from memory."""

    flops: int
    bytes: int

    def seconds(self, device: Device) -> float:
        """The time of its arithmetic or of its memory traffic, whichever is longer."""
        return max(self.flops / device.flops, self.bytes / device.bandwidth)


class Part(NamedTuple):
    """A part of a step. flops: those of the model, as `flops_per_token` counts them: for attention, twice what the
    causal forward pass executes."""

    name: str
    flops: int
    kernels: tuple[Kernel, ...]

    @property
    def bytes(self) -> int:
        """Bytes moved by all kernels."""
        return sum(kernel.bytes for kernel in self.kernels)

    def seconds(self, device: Device) -> float:
        """The sum over the kernels: none overlaps another."""
        return sum(kernel.seconds(device) for kernel in self.kernels)


def parts_of_step(config: GPTConfig, *, rows: int, context: int) -> tuple[Part, ...]:
    """A step of pretraining on one device: rows of `context` tokens of one text, all weights trained with AdamW.

    As it is computed here in bf16-mixed precision with compile=true: float32 weights, cast once in each pass; a float32
    residual stream; flash attention (Dao 2023), whose backward pass executes 5 products to the forward's 2, each on
    half of the scores; elementwise work of a layer fused to one pass over what it reads and writes; nothing recomputed
    but in attention. Left out: collectives, and the time in which no kernel runs.
    """
    tokens, d, layers = rows * context, config.hidden_size, config.num_hidden_layers
    shapes, heads = config.projections(), config.num_attention_heads * config.head_dim
    sizes = {name: size for step in config.layer_weights() for name, size in step.items()}

    def counted(*prefixes: str) -> int:
        return 6 * tokens * layers * sum(size for name, size in sizes.items() if name.startswith(prefixes))

    qkv = sum(shapes[name][0] for name in ("q_proj", "k_proj", "v_proj"))
    inner = sum(shapes[name][0] for name in ("gate_proj", "up_proj") if name in shapes)
    attending = 2 * tokens * heads * context  # FLOPs of both products, on half of the scores
    vocabulary, parameters = config.vocab_size, config.num_parameters()
    projections = counted("self_attn") - counted("self_attn.q_norm", "self_attn.k_norm")
    normed = (2 * layers + 1, len(config.norm_weights("norm")))
    norms = counted("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
    accumulated = -(-tokens * vocabulary // CHUNK) * 10 * vocabulary * d  # of the head's gradient, a chunk at a time
    return (
        Part("embedding", 0, tuple(_embedding(config, tokens))),
        Part(
            "attention projections",
            projections,
            (*_product(tokens, d, qkv, layers), *_product(tokens, heads, d, layers)),
        ),
        Part("attention", 12 * layers * tokens * heads * context, tuple(_attention(config, tokens, attending))),
        Part(
            "MLP",
            counted("mlp"),
            (
                *_product(tokens, d, inner, layers),
                *_product(tokens, config.intermediate_size, d, layers),
                # forward: reads the inputs, writes the output; backward: reads both, writes the inputs' gradients
                Kernel(0, layers * tokens * 2 * (3 * inner + 2 * config.intermediate_size)),
            ),
        ),
        Part("norms and residuals", norms + 6 * tokens * d * normed[1], (Kernel(0, normed[0] * 28 * tokens * d),)),
        Part(
            "head and loss",
            6 * tokens * vocabulary * d,
            (*_product(tokens, d, vocabulary, 1), Kernel(0, BYTES_PER_LOGIT * tokens * vocabulary + accumulated)),
        ),
        Part("clipping and AdamW", 0, (Kernel(0, 12 * parameters), Kernel(0, 28 * parameters))),
    )


def _product(tokens: int, inputs: int, outputs: int, layers: int) -> tuple[Kernel, ...]:
    """A projection forward, its two products backward, and casts: of the weight to bf16, of its gradient to float32."""
    flops, weight = 2 * tokens * inputs * outputs, inputs * outputs
    product = Kernel(layers * flops, layers * 2 * (tokens * (inputs + outputs) + weight))
    return product, product, product, Kernel(0, layers * 12 * weight)


def _attention(config: GPTConfig, tokens: int, attending: int) -> Iterator[Kernel]:
    """The kernel, forward and backward, and the rotation of queries and keys (read and written in bf16)."""
    layers, queries = config.num_hidden_layers, tokens * config.num_attention_heads * config.head_dim
    keys = tokens * config.num_key_value_heads * config.head_dim
    yield Kernel(layers * attending, layers * 2 * (2 * queries + 2 * keys))
    yield Kernel(layers * attending * 5 // 2, layers * 2 * (4 * queries + 4 * keys))
    if config.positions == "rotary":
        yield Kernel(0, layers * 8 * (queries + keys))
    if config.qk_norm:
        yield Kernel(0, layers * 10 * (queries + keys))


def _embedding(config: GPTConfig, tokens: int) -> Iterator[Kernel]:
    """Rows read and written in float32; backward, a matrix of zeros to which their gradients are added, and which a
    tied head adds its own gradient to."""
    hidden, matrix = tokens * config.hidden_size, config.vocab_size * config.hidden_size
    yield Kernel(0, 8 * hidden)
    yield Kernel(0, 12 * hidden + 4 * matrix + (12 * matrix if config.tie_word_embeddings else 0))


def seconds_of(parts: Sequence[Part], device: Device) -> float:
    """The time of all parts, one after another."""
    return sum(part.seconds(device) for part in parts)


def predicted_mfu(parts: Sequence[Part], device: Device) -> float:
    """The highest model FLOP utilization, 0 to 1, that the device's data sheet allows."""
    return sum(part.flops for part in parts) / (seconds_of(parts, device) * device.flops)
