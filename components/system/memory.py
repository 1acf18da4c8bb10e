"""How much memory is free, within the limit of the control group, and whether an error says that it ran out."""

import math
from pathlib import Path

ROOT = Path("/")
USABLE = 0.9  # share of the free memory for what is estimated; the rest is for what is not


def available(root: Path = ROOT) -> float:
    """Bytes that this process can still take before the system ends it; infinity if the system does not say (no /proc).

    The least of the machine's MemAvailable and, if the control group at the root (a container's own) has a limit, of
    that limit less what it uses; cached files count as free. root: the folder that holds proc and sys.
    """
    found = [_machine(root / "proc/meminfo")]
    groups = root / "sys/fs/cgroup"
    for folder, limit, usage in (
        (groups, "memory.max", "memory.current"),
        (groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),  # version 1
    ):
        found.append(_number(folder / limit) - _number(folder / usage, 0.0) + _cached(folder / "memory.stat"))
    return min(found)


def _machine(meminfo: Path) -> float:
    return _fields(meminfo).get("MemAvailable:", math.inf) * 1024


def _cached(stat: Path) -> float:
    fields = _fields(stat)
    return fields.get("total_inactive_file", fields.get("inactive_file", 0.0))


def _fields(file: Path) -> dict[str, float]:
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: float(line[1]) for line in lines if len(line) > 1}


def _number(file: Path, absent: float = math.inf) -> float:
    """The number in a file; infinity for "max"."""
    try:
        text = file.read_text().strip()
    except OSError:
        return absent
    return math.inf if text == "max" else float(text)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether a GPU is out of memory, or a machine that refuses memory rather than ending the process."""
    said = ("out of memory", "can't allocate memory")  # by torch, whose errors of this kind are RuntimeErrors
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in said)
    )
