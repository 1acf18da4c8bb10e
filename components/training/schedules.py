"""The learning-rate schedule as a multiplier."""

import math
from typing import Literal

from components.system.limits import NonNegative


def schedule(
    kind: Literal["constant", "linear", "cosine"],
    step: int,
    *,
    warmup_steps: int,
    total_steps: int,
    final_fraction: NonNegative,
) -> float:
    """Multiplier of the peak learning rate at optimizer step `step`, counted from 0.

    Warmup: (step + 1) / warmup_steps. Then, with x = (step − warmup_steps) / (total_steps − warmup_steps) and
    f = final_fraction:
    constant 1;  linear f + (1 − f)·(1 − x);  cosine f + (1 − f)·(1 + cos πx)/2.
    From total_steps on: f (constant: 1). No step before total_steps has a rate of 0, even if f = 0.
    Raises ValueError for an unknown kind, a negative count, or total_steps < 1 if the rate decays.
    Sources: Loshchilov & Hutter 2017 (SGDR), eq. 5; Touvron et al. 2023 (LLaMA), section 2.3.
    """
    if kind not in ("constant", "linear", "cosine"):
        raise ValueError(f"schedule: expected constant, linear or cosine, got {kind!r}")
    if step < 0 or warmup_steps < 0:
        raise ValueError(f"schedule: expected step, warmup_steps of at least 0, got {step}, {warmup_steps}")
    if kind != "constant" and total_steps < 1:
        raise ValueError(f"schedule: {kind} needs total_steps of at least 1, got {total_steps}")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if kind == "constant":
        return 1.0
    if step >= total_steps:
        return final_fraction
    done = (step - warmup_steps) / (total_steps - warmup_steps)
    remaining = 1 - done if kind == "linear" else (1 + math.cos(math.pi * done)) / 2
    return final_fraction + (1 - final_fraction) * remaining
