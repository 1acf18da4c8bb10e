"""Memory that a stage takes on each device, by part."""

from functools import partial
from typing import NamedTuple

from components.models.activations import (
    Activations,
    activations_of,
    cached_bytes,
    copied_weights,
    numbers_in_layer,
    output_gradient,
)
from components.planning.roofline import CHUNK
from components.planning.work import Network, Work
from components.system.memory import USABLE

FLOAT32 = 4
LOGIT = 12  # bytes: of a logit, of its log-probability or gradient, and of whether it is the largest
GATHERED_LAYERS = 2  # by FSDP2: the one that is computed, and the next, which is being gathered


class Memory(NamedTuple):
    """Bytes on one device.

    Held throughout: weights, gradients, optimizer. Held by an update: gathered (whole weights under FSDP2) and either
    activations and reducing (whole gradients being reduced) or left (of the activations, while logits exist) and
    logits. Held by sampling, never at the same time: cache (keys and values), sampler (the policy's weights in the
    layout for it) and gathered_to_sample (all weights). recomputed: whether layers are recomputed.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    left: float
    logits: float
    gathered: float
    reducing: float
    cache: float
    sampler: float
    gathered_to_sample: float
    recomputed: bool

    @property
    def states(self) -> float:
        """What is held throughout."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        """The peak."""
        update = self.gathered + max(self.activations + self.reducing, self.left + self.logits)
        return self.states + max(update, self.cache + self.sampler + self.gathered_to_sample)

    def fits(self, memory: float) -> bool:
        """Whether the peak is within the usable share of this many bytes."""
        return self.total <= USABLE * memory


def memory_of(work: Work, available: float, *, chunk: int = CHUNK) -> Memory:
    """The memory that a stage takes on a device with `available` bytes, by which gradient_checkpointing=auto decides.

    chunk: logits computed at a time. Left out: the CUDA context and its libraries, communication buffers,
    fragmentation.
    """
    kept = _memory_of(work, chunk, recompute=work.recompute is True)
    if work.recompute == "auto" and not kept.fits(available):
        return _memory_of(work, chunk, recompute=True)
    return kept


def _memory_of(work: Work, chunk: int, *, recompute: bool) -> Memory:
    shards, sharded = work.shards, work.shards > 1
    trained = sum(network.trained_parameters for network in work.trained)
    whole = sum(network.weight_bytes for network in work.networks)
    vocabulary = max((net.config.vocab_size for net in work.networks if net.head == "lm_head"), default=0)
    kept = sum(_part(activations(net, work), recompute) + _casts(net, work, recompute) for net in work.trained)
    return Memory(
        weights=whole / shards,
        gradients=FLOAT32 * trained / shards,
        optimizer=work.states * trained / shards,
        activations=kept,
        left=kept - sum(map(partial(_inside, work), work.trained)) if recompute else kept,
        logits=LOGIT * min(work.at_once * vocabulary, chunk) + max(map(_head_gradient, work.trained)),
        gathered=max(map(_gathered, work.networks)) if sharded else 0.0,
        reducing=max(map(_reducing, work.trained)) if sharded else 0.0,
        cache=cache_bytes(work),
        sampler=width_of(work) * work.model.config.num_parameters() if work.rollouts else 0.0,
        gathered_to_sample=whole * (1 - 1 / shards) if work.rollouts else 0.0,
        recomputed=recompute,
    )


def activations(network: Network, work: Work) -> Activations:
    """What the layers of a network keep for the backward pass of a micro-batch, in bytes."""
    return activations_of(network.config, work.at_once, width=width_of(work), lean=work.lean)


def width_of(work: Work) -> int:
    """Bytes of a number that a product reads."""
    return 2 if work.mixed else FLOAT32


def _part(bytes_of: Activations, recompute: bool) -> float:
    return bytes_of.recomputed if recompute else bytes_of.kept


def cache_bytes(work: Work) -> float:
    """Bytes of the keys and values of all responses that are sampled together, at their longest, with their prompts."""
    if work.rollouts is None:
        return 0.0
    return float(cache_token(work) * work.rollouts.rows * (work.rollouts.prompt + work.rollouts.response))


def cache_token(work: Work) -> int:
    """Bytes of a token's keys and values."""
    return cached_bytes(work.model.config, width=width_of(work), on_cpu=work.on_cpu)


def _layer(network: Network) -> int:
    """Weights of a layer."""
    return sum(size for step in network.config.layer_weights() for size in step.values())


def _casts(network: Network, work: Work, recompute: bool) -> float:
    """Bytes of the copies of matrices that uncompiled layers keep for their backward pass."""
    if work.compiled:
        return 0.0
    layers = 1 if recompute else network.config.num_hidden_layers
    return layers * copied_weights(network.config, width=width_of(work), mixed=work.mixed)


def _inside(work: Work, network: Network) -> float:
    """Bytes that one recomputed layer keeps besides its input."""
    numbers = work.at_once * numbers_in_layer(network.config, lean=work.lean)
    return numbers * width_of(work) + _casts(network, work, recompute=True)


def _head_gradient(network: Network) -> float:
    trained = network.head == "lm_head" and not network.ranks
    return output_gradient(network.config) if trained else 0.0


def _gathered(network: Network) -> float:
    """Bytes that FSDP2 keeps unsharded while it computes: two layers, and the weights outside of layers."""
    outside = network.config.num_parameters(network.head) - network.config.num_hidden_layers * _layer(network)
    return float(FLOAT32 * (GATHERED_LAYERS * _layer(network) + outside))


def _reducing(network: Network) -> float:
    """Bytes of whole gradients under FSDP2: of the layer that is computed, and of the one being reduced."""
    return float(FLOAT32 * GATHERED_LAYERS * _layer(network)) if not network.ranks else 0.0
