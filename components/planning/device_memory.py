"""Memory that a stage takes on each device, by part."""

from typing import NamedTuple

from components.models.activations import Activations, activations_of
from components.planning.roofline import CHUNK
from components.planning.work import Network, Work
from components.system.memory import USABLE

FLOAT32 = 4
GATHERED_LAYERS = 2  # of FSDP2: the one that is computed, and the next, which is on its way


class Memory(NamedTuple):
    """Bytes on one device. weights, gradients and optimizer stay; the others come and go: those of an update
    (activations, logits, the weights gathered for it) never at the same time as those of sampling (the cache of keys
    and values, the policy's weights in the layout for it, and all weights gathered). recomputed: whether layers are
    recomputed.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    gathered: float
    cache: float
    sampler: float
    gathered_to_sample: float
    recomputed: bool

    @property
    def states(self) -> float:
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        """At the moment when it is most."""
        update = self.activations + self.logits + self.gathered
        return self.states + max(update, self.cache + self.sampler + self.gathered_to_sample)

    def fits(self, memory: float) -> bool:
        return self.total <= USABLE * memory


def memory_of(work: Work, available: float, *, chunk: int = CHUNK) -> Memory:
    """Of a device that has so many bytes available, by which gradient_checkpointing=auto decides.

    chunk: logits computed at a time. Left out: the CUDA context and its libraries, communication buffers,
    fragmentation.
    """
    kept = _memory_of(work, chunk, recompute=work.recompute is True)
    if work.recompute == "auto" and not kept.fits(available):
        return _memory_of(work, chunk, recompute=True)
    return kept


def _memory_of(work: Work, chunk: int, *, recompute: bool) -> Memory:
    sharded = work.strategy == "fsdp" and work.devices > 1
    shards = work.devices if sharded else 1
    trained = sum(network.trained_parameters for network in work.trained)
    whole = sum(network.weight_bytes for network in work.networks)
    vocabulary = max((net.config.vocab_size for net in work.networks if net.head == "lm_head"), default=0)
    return Memory(
        weights=whole / shards,
        gradients=FLOAT32 * trained / shards,
        optimizer=work.states * trained / shards,
        activations=sum(_part(activations(network, work), recompute) for network in work.trained),
        logits=2 * FLOAT32 * min(work.at_once * vocabulary, chunk),  # and their gradient
        gathered=max(map(_gathered, work.networks)) if sharded else 0.0,
        cache=cache_bytes(work),
        sampler=width_of(work) * work.model.config.num_parameters() if work.rollouts else 0.0,
        gathered_to_sample=whole * (1 - 1 / shards) if work.rollouts else 0.0,
        recomputed=recompute,
    )


def activations(network: Network, work: Work) -> Activations:
    return activations_of(network.config, work.at_once, width=width_of(work), lean=work.lean)


def width_of(work: Work) -> int:
    """Bytes of a number that a product reads."""
    return 2 if work.mixed else FLOAT32


def _part(bytes_of: Activations, recompute: bool) -> float:
    return bytes_of.recomputed if recompute else bytes_of.kept


def cache_bytes(work: Work) -> float:
    """Of the keys and values of all responses that are sampled together, at their longest, with their prompts."""
    if work.rollouts is None:
        return 0.0
    return float(cache_token(work) * work.rollouts.rows * (work.rollouts.prompt + work.rollouts.response))


def cache_token(work: Work) -> int:
    """Bytes of a token's keys and values."""
    config = work.model.config
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * width_of(work)


def _gathered(network: Network) -> float:
    """What FSDP2 keeps unsharded while it computes: two layers, and what lies outside of layers."""
    layer = sum(size for step in network.config.layer_weights() for size in step.values())
    outside = network.config.num_parameters(network.head) - network.config.num_hidden_layers * layer
    return float(FLOAT32 * (GATHERED_LAYERS * layer + outside))
