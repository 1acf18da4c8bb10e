"""Whether a run compiles its layers with torch.compile."""

from typing import Literal

COMPILE_FROM = 1000  # steps of a run from which compile=auto compiles: a minute then costs at most 60 ms per step


def compiles(setting: bool | Literal["auto"], device_type: str, steps: float) -> bool:
    """Whether layers are compiled in a run of `steps` optimizer steps, counted from its start, so that it resumes with
    the same kernels. auto: on CUDA in runs of at least COMPILE_FROM steps; never on a CPU, where compiled layers have
    not been faster."""
    return device_type == "cuda" and steps >= COMPILE_FROM if setting == "auto" else setting
