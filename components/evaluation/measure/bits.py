"""Bits per byte of text: how much a model has retained, or forgotten, of the text that it was pretrained on."""

import math
from collections.abc import Iterable

import torch

from components.data.batches import LMBatch, moved_to
from components.functional.output_layer import linear_cross_entropy
from components.models.heads import CausalLM


@torch.no_grad()
def bits_per_byte(model: CausalLM, batches: Iterable[LMBatch]) -> float:
    """−Σ log₂ p of all counted targets / Σ UTF-8 bytes that they represent.

    Raises ValueError if no batch has a counted target.
    """
    device = next(model.parameters()).device
    nats, num_bytes = 0.0, 0
    for batch in batches:
        here = moved_to(device, batch)
        hidden = model.hidden(here.input_ids, here.layout).flatten(0, 1)[here.counted]
        nats += float(model.through_head(linear_cross_entropy, hidden, here.targets.flatten()[here.counted])[0])
        num_bytes += int(batch.num_bytes)
    if not num_bytes:
        raise ValueError("bits_per_byte: expected text with at least one token to predict, found none in any batch")
    return nats / math.log(2) / num_bytes
