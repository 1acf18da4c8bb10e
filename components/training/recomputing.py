"""Whether a step recomputes layers in its backward pass: only if keeping their activations would not fit in memory."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch

from components.models.config import GPTConfig
from components.models.heads import CausalLM, ScalarModel
from components.models.shards import local_part
from components.system.memory import available

USABLE = 0.9  # of the memory that is free; the rest is for what is not estimated
STATES = 3  # numbers for each trained weight: its gradient and AdamW's two moments


class Need(NamedTuple):
    """Estimated bytes that a training step takes on top of the weights, of this process.

    states: gradients and the optimizer's moments. kept: activations if every layer keeps its own. recomputed: if only
    the inputs of layers are kept, and what is inside of them for one layer at a time.
    """

    states: float
    kept: float
    recomputed: float

    def fits(self, free: float) -> bool:
        """Whether activations can be kept if this many bytes are free."""
        return self.states + self.kept <= USABLE * free

    def note(self, free: float) -> str:
        """What follows from the memory that is free, in words."""
        told = f"a step takes about {gigabytes(self.states + self.kept)}"
        told += f", {gigabytes(free)} are free" if free < math.inf else ""
        if self.fits(free):
            return f"{told}: activations are kept"
        less = f"which takes about {gigabytes(self.states + self.recomputed)}"
        return f"{told}: layers are recomputed in the backward pass, {less} (gradient_checkpointing=auto)"


def need_of(networks: Iterable[CausalLM | ScalarModel], tokens: int, *, width: int, lean: bool) -> Need:
    """Of a step on `tokens` tokens at once for each of the trained networks.

    width: bytes of a number that a product reads. lean: whether inputs of products are recomputed anyway, by
    models.projection or by a compiler.
    """
    states = kept = recomputed = 0.0
    for network in networks:
        config = network.config
        trained = [local_part(p) for p in network.parameters() if p.requires_grad]
        states += STATES * sum(part.numel() * part.element_size() for part in trained)
        residual, inside = 4 * config.hidden_size, numbers_in_layer(config, lean=lean) * width
        kept += tokens * (config.num_hidden_layers + 2) * residual + tokens * config.num_hidden_layers * inside
        recomputed += tokens * (config.num_hidden_layers + 2) * residual + tokens * inside
    return Need(states, kept, recomputed)


def numbers_in_layer(config: GPTConfig, *, lean: bool) -> int:
    """Numbers that a layer keeps of each token for its backward pass, besides its input."""
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    least = config.hidden_size + 2 * (queries + keys) + 2 * config.intermediate_size
    lean = lean and config.norm == "rms" and config.mlp == "swiglu"
    # the normed inputs before and after their scale, queries and keys before their rotation, silu(gate), its product
    return least if lean else least + 4 * config.hidden_size + queries + 2 * keys + 2 * config.intermediate_size


def free_memory(device: torch.device) -> float:
    """Bytes that tensors on a device can still take; infinity if it does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return available()


def gigabytes(number: float) -> str:
    return f"{number / 2**30:.1f} GB"
