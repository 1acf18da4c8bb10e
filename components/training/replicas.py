"""How many shards of a model there are if several groups of devices have one copy each (hybrid sharding)."""


def shards_of(devices: int, replicas: int) -> int:
    """Devices of a group. Raises ValueError unless they make `replicas` groups of equal size."""
    if devices % replicas:
        raise ValueError(
            f"trainer.strategy.replicas={replicas}: {devices} devices do not make {replicas} groups of equal size. "
            f"Expected a divisor of {devices}"
        )
    return devices // replicas
