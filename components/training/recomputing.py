"""Whether a step recomputes layers in its backward pass: only if keeping their activations would not fit in memory."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from components.models.activations import activations_of, copied_weights, output_gradient
from components.models.heads import CausalLM, ScalarModel
from components.models.shards import local_part
from components.system.memory import USABLE, available

STATES = 3  # numbers for each trained weight: its gradient and AdamW's two moments
# Bytes that a process takes on a CPU whatever the model's size: a chunk of logits with what is computed from them; the
# kernels that oneDNN compiles for shapes of products and keeps, which in float32 only sampling has it multiply; and at
# most, holes in the heap. Measured on an EPYC with avx512_bf16, models of 0.8M to 135M parameters (docs/planning.md).
LOGITS, KERNELS_BF16, KERNELS_TO_SAMPLE, HOLES = 3e7, 8e7, 3.2e7, 2e8


class Need(NamedTuple):
    """Estimated bytes that a training step takes in this process, on top of the weights.

    states: gradients and the optimizer's moments. kept: activations, copies of matrices and the output matrix's
    gradient, if every layer keeps its own. recomputed: if only the inputs of layers are kept, and what is inside of
    them for one layer at a time. fixed: what does not depend on layers being recomputed. sampling: what sampling takes
    between updates, instead of activations. holes: at most, of memory that is freed but not used again.
    """

    states: float
    kept: float
    recomputed: float
    fixed: float = 0.0
    sampling: float = 0.0
    holes: float = 0.0

    def taken(self, recompute: bool) -> float:
        """Bytes in all, with or without recomputing layers.

        A heap keeps a hole where activations were if something of another size comes next to stay or to be sampled
        with: gradients and moments in the first step, weights and a cache in every rollout.
        """
        update = self.recomputed if recompute else self.kept
        holes = min(update, 2 * self.states) + min(update, self.sampling)
        return self.states + self.fixed + max(update, self.sampling) + min(holes, self.holes)

    def fits(self, free: float) -> bool:
        """Whether activations can be kept if this many bytes are free."""
        return self.taken(False) <= USABLE * free

    def note(self, free: float) -> str:
        """The estimate and whether layers are recomputed, in words; free: bytes."""
        told = f"a step takes about {gigabytes(self.taken(False))}"
        told += f", {gigabytes(free)} are free" if free < math.inf else ""
        if self.fits(free):
            return f"{told}: activations are kept"
        less = f"which takes about {gigabytes(self.taken(True))}"
        return f"{told}: layers are recomputed in the backward pass, {less} (gradient_checkpointing=auto)"


def need_of(
    networks: Sequence[CausalLM | ScalarModel],
    tokens: int,
    *,
    width: int,
    lean: bool,
    mixed: bool,
    compiled: bool,
    on_cpu: bool,
    sampling: float = 0.0,
) -> Need:
    """The need of a step in which each of the trained networks reads `tokens` tokens at once. Left out: on a GPU a
    chunk of logits, and what FSDP2 gathers and reduces.

    width, lean, mixed: as in `models.activations`. compiled: whether layers are. on_cpu: where the step is made.
    sampling: bytes that sampling takes between updates.
    """
    states = kept = recomputed = 0.0
    for network in networks:
        trained = [local_part(p) for p in network.parameters() if p.requires_grad]
        states += STATES * sum(part.numel() * part.element_size() for part in trained)
        activations = activations_of(network.config, tokens, width=width, lean=lean)
        copied = 0.0 if compiled else copied_weights(network.config, width=width, mixed=mixed)
        trained_head = isinstance(network, CausalLM) and network.lm_head.weight.requires_grad
        gradient = output_gradient(network.config) if trained_head else 0.0
        kept += activations.kept + network.config.num_hidden_layers * copied + gradient
        recomputed += activations.recomputed + copied + gradient
    if not on_cpu:
        return Need(states, kept, recomputed, sampling=sampling)
    logits = LOGITS if any(isinstance(network, CausalLM) for network in networks) else 0.0
    kernels = KERNELS_BF16 if width == 2 else KERNELS_TO_SAMPLE if sampling else 0.0
    return Need(states, kept, recomputed, logits + kernels, sampling, HOLES)


def free_memory(device: torch.device) -> float:
    """Bytes that tensors on a device can still take; infinity if it does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return available()


def gigabytes(number: float) -> str:
    """Bytes as gigabytes of 2^30, with the unit."""
    return f"{number / 2**30:.1f} GB"
