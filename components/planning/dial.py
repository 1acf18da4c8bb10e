"""One dial: a model's depth decides its shape and how it is pretrained."""

import math
from typing import NamedTuple

from components.models.config import GPTConfig
from components.models.flops import flops_per_token

WIDTH = 64  # of the model for each layer, as in GPT-2 small; Kaplan et al. 2020, figure 5: the ratio matters little
HEAD = 64  # width of a head, as in GPT-2 small: a head for each layer
MULTIPLE = 64  # of the width of an MLP
CONTEXT = 512  # tokens
TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022 (Chinchilla), table 3
ROWS = 32  # of a micro-batch, at most


class Dial(NamedTuple):
    """What follows from a depth. batch_size: rows of a micro-batch; accumulate_grad_batches: micro-batches of a step;
    tokens: of all steps."""

    hidden_size: int
    intermediate_size: int
    parameters: int
    lr: float
    batch_size: int
    accumulate_grad_batches: int
    steps: int
    tokens: int


def dial(depth: int, vocab_size: int) -> Dial:
    """A model of `depth` layers with 20 tokens for each parameter, the compute-optimal number, and the learning rate
    and the batch that suit this compute.

    The MLP is 8/3 as wide as the model, as in LLaMA, rounded up.
    Raises ValueError unless depth is a whole number above 0.
    """
    if not isinstance(depth, int) or depth < 1:
        raise ValueError(f"depth={depth}: expected a whole number of layers above 0")
    shape = GPTConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH * depth,
        intermediate_size=MULTIPLE * math.ceil(8 * WIDTH * depth / 3 / MULTIPLE),
        num_hidden_layers=depth,
        num_attention_heads=depth,
        num_key_value_heads=depth,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
    )
    parameters = shape.num_parameters()
    tokens = TOKENS_PER_PARAMETER * parameters
    in_layers = flops_per_token(shape, CONTEXT).training - 6 * vocab_size * shape.hidden_size
    rate, batch = optimal(float(in_layers) * tokens)
    rows = max(round(batch / CONTEXT), 1)
    accumulated = math.ceil(rows / ROWS)
    each = math.ceil(rows / accumulated)
    steps = math.ceil(tokens / (each * accumulated * CONTEXT))
    return Dial(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        parameters=parameters,
        lr=float(f"{rate:.2g}"),
        batch_size=each,
        accumulate_grad_batches=accumulated,
        steps=steps,
        tokens=steps * each * accumulated * CONTEXT,
    )


def optimal(flops: float) -> tuple[float, float]:
    """The learning rate, and the tokens of a batch, for pretraining with C = `flops` FLOPs in layers.

    lr = 0.3118 · C^−0.1250, batch = 0.2920 · C^0.3271.  Source: Bi et al. 2024 (DeepSeek LLM), section 3.1, eq. 1.
    """
    return 0.3118 * flops**-0.1250, 0.2920 * flops**0.3271
