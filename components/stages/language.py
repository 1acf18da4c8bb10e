"""The language-modelling loss that pretraining, SFT and PPO-ptx share."""

import math

import torch
from torch import Tensor

from components.data.batches import LMBatch
from components.functional.logprobs import gather_logprobs
from components.functional.losses import causal_lm
from components.models.heads import CausalLM
from components.stages.stage import LossOutput


def language_loss(model: CausalLM, batch: LMBatch) -> LossOutput:
    """Mean −log p of the batch's counted targets, in nats; only their places pass through the head.

    Metrics: accuracy (share of targets that are the likeliest token), bytes_per_token.
    """
    hidden = model.hidden(batch.input_ids, batch.layout)
    logits = model.head(hidden[batch.mask])
    targets = batch.targets[batch.mask]
    logprobs = gather_logprobs(logits, targets, temperature=1.0)
    loss = causal_lm(logprobs, logprobs.new_ones(logprobs.shape, dtype=torch.bool))
    count = max(targets.numel(), 1)
    metrics = {
        "accuracy": (logits.detach().argmax(-1) == targets).sum() / count,
        "bytes_per_token": batch.num_bytes / count,
    }
    return LossOutput(loss, metrics, targets.numel())


def bits_per_byte(loss: Tensor, bytes_per_token: Tensor) -> Tensor:
    """Nats per token → bits per byte of text: comparable across tokenizers."""
    return loss / math.log(2) / bytes_per_token.clamp_min(1e-9)
