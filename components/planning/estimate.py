"""What a stage takes on a machine: time, cost, memory, communication."""

from typing import NamedTuple

from components.planning.device_memory import FLOAT32, Memory, cache_token, memory_of, width_of
from components.planning.hardware import Hardware
from components.planning.work import Operations, Work, operations_of

HOUR, DAY = 3600.0, 86400.0


class Estimate(NamedTuple):
    """What one stage takes. seconds: of training, sampling included; sampling: seconds of sampling alone. communicated:
    bytes that a device sends in an optimizer step, hidden behind computing unless they take longer. price, mfu: of the
    hardware; on this machine, mfu is that of the stage's own model."""

    work: Work
    operations: Operations
    memory: Memory
    seconds: float
    sampling: float
    communicated: float
    price: float
    mfu: float

    @property
    def gpu_hours(self) -> float:
        return self.seconds * self.work.devices / HOUR

    @property
    def cost(self) -> float:
        """In US$."""
        return self.gpu_hours * self.price

    @property
    def recomputation(self) -> float:
        """FLOPs of recomputed layers; 0 if activations are kept."""
        return self.operations.recomputation if self.memory.recomputed else 0.0


def estimate(work: Work, hardware: Hardware) -> Estimate:
    """The estimate of a stage's work on a machine. As in publications, mfu counts the model's own FLOPs: recomputation
    lowers it and is not added on top."""
    operations, memory = operations_of(work), memory_of(work, hardware.memory)
    rate = work.devices * hardware.peak(work.mixed) * hardware.mfu
    computing = (operations.training + operations.assessing) / rate
    communicated = bytes_sent(work)
    communicating = work.steps * communicated / hardware.link(work.devices)
    sampling = _sampling_seconds(work, hardware)
    seconds = max(computing, communicating) + sampling
    return Estimate(work, operations, memory, seconds, sampling, communicated, hardware.price, hardware.mfu)


def bytes_sent(work: Work) -> float:
    """Bytes that a device sends, and receives, in an optimizer step.

    DDP: a ring all-reduce of the gradients after the last micro-batch, 2 (n − 1)/n of them. FSDP2: in every micro-batch
    all-gathers of the weights, forward and backward, and a reduce-scatter of the gradients, (n − 1)/n of each, in
    float32; with replicas, these within each replica, and then an all-reduce of each shard's gradients between them.
    """
    if work.devices == 1:
        return 0.0
    trained = FLOAT32 * sum(network.trained_parameters for network in work.trained)
    if work.strategy == "fsdp":
        whole = FLOAT32 * sum(network.parameters for network in work.trained)
        between = 2 * _share(work.replicas) * trained / work.shards
        return work.accumulation * (_share(work.shards) * (2 * whole + trained) + between)
    return 2 * _share(work.devices) * trained


def _share(ranks: int) -> float:
    """The share of a tensor that each rank sends in a ring all-gather or reduce-scatter."""
    return (ranks - 1) / ranks


def bytes_of_step(work: Work) -> float:
    """Bytes read to sample the next token of all rows: the weights, and the cache with half of each response in it."""
    assert work.rollouts is not None
    rollouts, config = work.rollouts, work.model.config
    cached = rollouts.rows * (rollouts.prompt + rollouts.response / 2)
    return config.num_parameters() * width_of(work) + cache_token(work) * cached


def _sampling_seconds(work: Work, hardware: Hardware) -> float:
    """Prompts are read at the rate of training; then each step takes as long as reading memory or computing,
    whichever is longer."""
    if work.rollouts is None:
        return 0.0
    rollouts, forward = work.rollouts, work.model.flops(work.model.config.longest).forward
    rate = hardware.peak(work.mixed) * hardware.mfu
    step = max(bytes_of_step(work) / (hardware.bandwidth * hardware.mbu), rollouts.rows * forward / rate)
    rounds = -(-rollouts.responses // rollouts.rows)
    return rollouts.number * (rounds * rollouts.response * step + rollouts.prompts * rollouts.prompt * forward / rate)
