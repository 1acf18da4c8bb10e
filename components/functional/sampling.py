"""From logits to the next token."""

import torch
from torch import Tensor

from components.functional.shapes import at_least_float32


def filter_logits(logits: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """logits / temperature, and −inf for tokens outside the top_k likeliest or the nucleus of mass top_p.

    The nucleus is the smallest set of likeliest tokens whose probabilities, after temperature and top-k, add
    up to at least top_p; the likeliest token is always kept. top_k 0 and top_p 1 turn the filters off. Of exactly
    equal logits at the boundary, either can be kept. On-policy training needs both filters off, or the sampler is not
    the policy that is trained.
    logits: (B, V), not modified. Returns (B, V) in at least float32.
    Raises ValueError for another rank, temperature <= 0, top_k < 0 or top_p not in (0, 1].
    Sources: Fan et al. 2018 (top-k); Holtzman et al. 2020 (nucleus), section 3.1.
    """
    if logits.dim() != 2:
        raise ValueError(f"filter_logits: expected logits (B, V), got {tuple(logits.shape)}")
    if temperature <= 0:
        raise ValueError(f"filter_logits: expected temperature above 0, got {temperature}")
    if top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(f"filter_logits: expected top_k >= 0 and top_p in (0, 1], got {top_k} and {top_p}")
    scaled = at_least_float32(logits) / temperature
    vocab_size = scaled.shape[1]
    kept = min(top_k, vocab_size) or vocab_size
    if kept == vocab_size and top_p == 1:
        return scaled
    values, ids = scaled.topk(kept, dim=1)  # likeliest first
    probabilities = values.softmax(dim=1)
    mass_before = probabilities.cumsum(dim=1) - probabilities
    if top_p < 1:
        values = values.masked_fill(mass_before >= top_p, float("-inf"))
    return torch.full_like(scaled, float("-inf")).scatter(1, ids, values)


def sample(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token per row, sampled from softmax(logits): (B, V) to (B,) int64. −inf is never sampled.

    The generator must be on the device of the logits. Raises ValueError for another rank.
    """
    return sample_at(logits, shares(len(logits), device=logits.device, generator=generator))


def sample_at(logits: Tensor, share: Tensor) -> Tensor:
    """`sample` by given randomness: share (B,) as from `shares`, one per row, so a row's token is a function of its
    logits and its share alone. Raises ValueError for another rank."""
    if logits.dim() != 2:
        raise ValueError(f"sample: expected logits (B, V), got {tuple(logits.shape)}")
    # The first token whose cumulative mass exceeds a uniform share of the total. torch.multinomial generates a random
    # number for each token of the vocabulary, which on a CPU costs more than a small model's forward pass.
    mass = at_least_float32(logits).softmax(dim=1).cumsum(dim=1, dtype=share.dtype)
    below = mass[:, -1:].nextafter(mass.new_zeros(()))  # share · total can round up to the total
    return torch.searchsorted(mass, torch.minimum(share[:, None] * mass[:, -1:], below), right=True).squeeze(1)


def shares(*shape: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1), of this shape, in double precision where the device has it."""
    dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no double precision
    return torch.rand(*shape, dtype=dtype, device=device, generator=generator)
