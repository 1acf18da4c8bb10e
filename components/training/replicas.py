"""How many shards a model has if several groups of devices hold one copy each (hybrid sharding)."""


def shards_of(devices: int, replicas: int) -> int:
    """Devices per replica. Raises ValueError unless the devices make `replicas` groups of equal size."""
    if devices % replicas:
        raise ValueError(
            f"trainer.strategy.replicas={replicas}: {devices} devices do not make {replicas} groups of equal size. "
            f"Expected a divisor of {devices}"
        )
    return devices // replicas
