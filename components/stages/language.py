"""The language-modeling loss that pretraining, SFT and PPO-ptx share."""

import math

from torch import Tensor

from components.data.batches import LMBatch
from components.functional.output_layer import linear_cross_entropy
from components.functional.seeding import seeded
from components.generation.generate import Sampling, stream
from components.models.heads import CausalLM
from components.tokenizer.tokenizer import Tokenizer
from components.training.contract import LossOutput, Term

OPENING = 8  # tokens of a document that are given as the prompt
LONGER = 16  # tokens by which a continuation can be longer than the text it replaces


def language_loss(model: CausalLM, batch: LMBatch) -> LossOutput:
    """Mean −log p of the targets where the batch's mask is True, in nats; only their hidden states pass the head.

    Metrics: accuracy (share of targets that are the likeliest token; a tie of t counts 1/t), bytes_per_token.
    """
    hidden, targets = model.hidden(batch.input_ids, batch.layout).flatten(0, 1), batch.targets.flatten()[batch.counted]
    nats, correct = model.through_head(
        linear_cross_entropy, hidden[batch.counted], targets, compiled=model.compiles_loss
    )
    count = max(targets.numel(), 1)
    metrics = {"accuracy": correct / count, "bytes_per_token": batch.num_bytes / count}
    return LossOutput((Term(nats / count, targets.numel()),), metrics)


def bits_per_byte(loss: Tensor, bytes_per_token: Tensor) -> Tensor:
    """Nats per token → bits per byte of text: comparable across tokenizers."""
    return loss / math.log(2) / bytes_per_token.clamp_min(1e-9)


def continuations(model: CausalLM, batch: LMBatch, tokenizer: Tokenizer, *, count: int) -> list[dict[str, str]]:
    """Greedy continuations of `count` texts of a batch: {prompt, response, expected}.

    One text per row, cut before its first target that the mask counts, but after at least OPENING tokens: a dialogue
    where the assistant begins, a document after its first words.
    """
    room = model.config.longest
    shown = []
    for ids, mask, segments in zip(batch.input_ids.cpu(), batch.mask.cpu(), batch.layout.segments.cpu(), strict=True):
        # a row's first text can be the rest of a longer one, its second always starts at the beginning
        chosen = segments == segments.max().clamp(max=1)
        text = ids[chosen].tolist()
        cut = min(max(int(mask[chosen].int().argmax()) + 1, OPENING), len(text))
        longest = min(len(text) - cut + LONGER, room - cut)
        if longest < 1:
            continue
        stops, generator = tokenizer.stop_ids, seeded(batch.input_ids.device, 0)
        response = stream(model, text[:cut], Sampling(longest, temperature=0.0), stop_ids=stops, generator=generator)
        shown.append(
            {
                "prompt": tokenizer.decode(text[:cut], skip_special=False),
                "response": tokenizer.decode(list(response)),
                "expected": tokenizer.decode(text[cut:]),
            }
        )
        if len(shown) == count:
            break
    return shown
