"""Machines to plan for: the files of conf/hardware, or one of your own with the same keys."""

from dataclasses import dataclass, fields
from pathlib import Path

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "conf/hardware"


@dataclass(frozen=True)
class Hardware:
    """A device of a kind, and what connects several.

    flops, flops_32: of dense matrix products in bf16 and in float32, per second. bandwidth: of its memory, bytes per
    second. memory: bytes. interconnect, network: of a device to those of its node and to other nodes, bytes per second
    in one direction. mfu: the share of `flops` that training reaches; mbu: that of `bandwidth` that sampling reaches.
    price: US$ per device and hour.
    Raises ValueError for a number that is not above 0 (price: below 0), or a share above 1.
    """

    name: str
    flops: float
    flops_32: float
    bandwidth: float
    memory: float
    interconnect: float
    network: float
    devices_per_node: int
    mfu: float
    mbu: float
    price: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "name":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"hardware.{field.name}: expected a number, got {value!r}")
            if value < 0 or (value == 0 and field.name != "price"):
                raise ValueError(f"hardware.{field.name}: expected a number above 0, got {value:g}")
            if field.name in ("mfu", "mbu") and value > 1:
                raise ValueError(f"hardware.{field.name}: expected a share from 0 to 1, got {value:g}")

    def peak(self, mixed: bool) -> float:
        """FLOP/s of products: in bf16 if training is in mixed precision, else in float32."""
        return self.flops if mixed else self.flops_32

    def link(self, devices: int) -> float:
        """Bytes per second of a collective of `devices` devices: across nodes, what the network cards of a node carry
        together, since data that enter a node once are passed on inside."""
        if devices <= self.devices_per_node:
            return self.interconnect
        return min(self.interconnect, self.network * self.devices_per_node)


def names() -> list[str]:
    """The names that `hardware=` accepts besides `here` and a file."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def load(name: str, changes: dict[str, object] | None = None) -> Hardware:
    """The hardware of conf/hardware, or of a YAML file of your own, with some of its values changed.

    Raises ValueError for a name, a key or a value that does not exist or fit.
    """
    file = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not file.is_file():
        raise ValueError(f"hardware={name}: expected here, {', '.join(names())}, or a YAML file with the same keys")
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected the keys of conf/hardware/a100_80.yaml")
    return of_values(values | (changes or {}), str(file))


def of_values(values: dict[str, object], where: str) -> Hardware:
    """The hardware with these values. Raises ValueError, naming `where`, for keys that are unknown or missing."""
    keys = [field.name for field in fields(Hardware)]
    wrong = [key for key in values if key not in keys] + [key for key in keys if key not in values]
    if wrong:
        raise ValueError(f"{where}: expected the keys {', '.join(keys)}; unknown or missing: {', '.join(wrong)}")
    return Hardware(**values)  # type: ignore[arg-type]
