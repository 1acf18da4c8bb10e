"""Settings that make a stage fit into memory if it does not."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from components.planning.device_memory import memory_of
from components.planning.estimate import Estimate, estimate
from components.planning.hardware import Hardware
from components.planning.work import Network, Work

RANK = 16  # of conf/lora/default.yaml


class Remedy(NamedTuple):
    """Settings, as on the command line, and what the stage takes with them."""

    settings: str
    estimate: Estimate


def remedy(work: Work, hardware: Hardware) -> Remedy | None:
    """The cheapest settings that make a stage fit, more devices last; None if not even those do."""
    for settings, changed in _remedies(work):
        if _fits(changed, hardware):
            return Remedy(" ".join(settings), estimate(changed, hardware))
    return None


def _fits(work: Work, hardware: Hardware) -> bool:
    return memory_of(work, hardware.memory).fits(hardware.memory)


def _remedies(work: Work) -> Iterator[tuple[list[str], Work]]:
    """Settings, and the work with them: sharding, recomputing and smaller batches; adapters; more devices."""
    yield from _without_adapters(work)
    if not any(network.ranks for network in work.trained):
        many = work.devices > 1
        strategy: Literal["one", "ddp"] = "ddp" if many else "one"  # a trunk that networks share cannot be sharded
        adapted = work._replace(networks=tuple(map(_adapted, work.networks)), strategy=strategy)
        for settings, changed in _recomputed_and_smaller(adapted):
            yield [*settings, "trainer=ddp lora=default" if many else "lora=default"], changed
    *_, (settings, smallest) = _without_adapters(work)
    settings = settings if smallest.strategy == "fsdp" else ["trainer=fsdp", *settings]
    for devices in (2**power for power in range(1, 15)):
        if devices > work.devices:
            yield [*settings, f"devices={devices}"], smallest._replace(devices=devices, strategy="fsdp")


def _without_adapters(work: Work) -> Iterator[tuple[list[str], Work]]:
    sharding = work.devices > 1 and work.strategy != "fsdp"
    for settings, changed in _recomputed_and_smaller(work._replace(strategy="fsdp") if sharding else work):
        yield ["trainer=fsdp", *settings] if sharding else settings, changed


def _recomputed_and_smaller(work: Work) -> Iterator[tuple[list[str], Work]]:
    """The work as it is, with layers recomputed, and then with fewer and fewer rows at a time."""
    settings: list[str] = []
    yield settings, work
    if work.recompute is False:
        settings, work = ["gradient_checkpointing=true"], work._replace(recompute=True)
        yield settings, work
    while work.rollouts is not None and work.rollouts.rows > 1:
        width = -(-work.rollouts.rows // 2)
        work = work._replace(rollouts=work.rollouts._replace(width=width))
        yield [*settings, f"+stage.rollout_width={width}"], work
    while work.rollouts is None and work.batch > 1:
        batch, times = work.batch // 2, 2 * work.accumulation
        work = work._replace(at_once=work.at_once // 2, batch=batch, accumulation=times)
        yield [*settings, f"data.batch_size={batch} trainer.accumulate_grad_batches={times}"], work


def _adapted(network: Network) -> Network:
    """A trained network with adapters; the reference without a trunk of its own; any other as it is."""
    ranks = dict.fromkeys(network.config.projections(), RANK) if network.trained else {}
    return network._replace(ranks=ranks, own_trunk=network.name != "reference")
