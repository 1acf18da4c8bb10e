"""The learning-rate schedule as a multiplier."""

import math
from typing import Literal

from components.system.limits import NonNegative, Share

Kind = Literal["constant", "linear", "cosine", "wsd"]
Decay = Literal["linear", "cosine", "sqrt"]


def schedule(
    kind: Kind,
    step: int,
    *,
    warmup_steps: int,
    total_steps: int,
    final_fraction: NonNegative,
    decay_share: Share = 0.2,
    decay_shape: Decay = "linear",
) -> float:
    """Multiplier of the peak learning rate at optimizer step `step`, counted from 0.

    Warmup: (step + 1) / warmup_steps. Then constant: 1. The other kinds decay from a first step to total_steps, where
    x = (step − first) / (total_steps − first) and f = final_fraction:
    linear f + (1 − f)·(1 − x);  cosine f + (1 − f)·(1 + cos πx)/2;  sqrt f + (1 − f)·(1 − √x).
    linear and cosine: first = warmup_steps. wsd (warmup, stable, decay) stays at 1 until the last decay_share of all
    steps, first = max(warmup_steps, total_steps − round(decay_share·total_steps)), and then decays in decay_shape. So a
    checkpoint from before that step continues a longer run, and with a decay_share of 0 every one does.
    From total_steps on: f, or 1 where nothing decays. No step before total_steps has a rate of 0, even if f = 0.
    Raises ValueError for an unknown kind or shape, a negative count, or total_steps < 1 if the rate decays.
    Sources: Loshchilov & Hutter 2017 (SGDR), eq. 5; Touvron et al. 2023 (LLaMA), section 2.3; Hu et al. 2024 (MiniCPM),
    section 4.2; Hägele et al. 2024, section 3 (sqrt, and a share of 0.2).
    """
    if kind not in ("constant", "linear", "cosine", "wsd"):
        raise ValueError(f"schedule: expected constant, linear, cosine or wsd, got {kind!r}")
    if step < 0 or warmup_steps < 0:
        raise ValueError(f"schedule: expected step, warmup_steps of at least 0, got {step}, {warmup_steps}")
    if kind != "constant" and total_steps < 1:
        raise ValueError(f"schedule: {kind} needs total_steps of at least 1, got {total_steps}")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    first = first_of_decay(warmup_steps, total_steps, decay_share) if kind == "wsd" else warmup_steps
    if kind == "constant" or step < first or (kind == "wsd" and first >= total_steps):
        return 1.0
    if step >= total_steps:
        return final_fraction
    shape = decay_shape if kind == "wsd" else kind
    return final_fraction + (1 - final_fraction) * _remaining(shape, (step - first) / (total_steps - first))


def first_of_decay(warmup_steps: int, total_steps: int, decay_share: float) -> int:
    """The first optimizer step of wsd's decay, counted from 0."""
    return max(warmup_steps, total_steps - round(decay_share * total_steps))


def _remaining(shape: str, done: float) -> float:
    """The share of the rate that is left when a share `done` of the decay is over: from 1 to 0."""
    if shape == "linear":
        return 1 - done
    if shape == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if shape == "sqrt":
        return 1 - math.sqrt(done)
    raise ValueError(f"schedule: expected a decay_shape of linear, cosine or sqrt, got {shape!r}")
