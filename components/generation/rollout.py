"""Experience of an on-policy stage: sampled responses, what was computed when they were sampled, and minibatches.

A rollout is a dict of tensors, one row per response:
    response_ids, mask (N, R)      sampled tokens, and True on real ones, the stop token included
    finished (N,)                  True if a stop token was sampled
    …  (N, R) or (N,)              what the stage adds: old_logprobs, advantages, returns, …
`packed` adds the rows that a model reads, and the positions in them that predict each response token.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from components.functional.masking import last_index
from components.models.attention.layout import Layout, pack

Experience = dict[str, Tensor]


def packed(prompts: Sequence[Sequence[int]], experience: Experience, *, row_length: int, pad_id: int) -> Experience:
    """`experience` with its prompts and responses packed into rows.

    Adds input_ids, positions, segments, parents (B, T); sources (N, R): flat index in B*T of the token that predicts
    each response token, 0 where masked; last (N,): flat index of each response's last token.
    Consecutive equal prompts share a trunk, computed once for all their responses, as long as a row has room.
    """
    mask = experience["mask"].cpu()
    responses = [ids[keep].tolist() for ids, keep in zip(experience["response_ids"].cpu(), mask, strict=True)]
    documents: list[list[Sequence[int]]] = []
    for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if number and prompt == prompts[number - 1] and _fits(documents[-1], response, row_length):
            documents[-1].append(response)
        else:
            documents.append([prompt, response])
    rows = pack(documents, row_length=row_length, filler=pad_id)
    sources = torch.zeros(mask.shape, dtype=torch.int64)
    n = 0
    for spans in rows.spans:
        trunk_start, trunk_length = spans[0]
        for start, length in spans[1:]:
            sources[n, 0] = trunk_start + trunk_length - 1
            sources[n, 1:length] = torch.arange(start, start + length - 1)
            n += 1
    last_column = last_index(mask)
    first = torch.tensor([start for spans in rows.spans for start, _ in spans[1:]])
    device = experience["mask"].device
    added = {
        "input_ids": rows.input_ids,
        **rows.layout._asdict(),
        "sources": sources,
        "last": first + last_column,
    }
    return {**experience, **{name: tensor.to(device) for name, tensor in added.items()}}


def layout_of(experience: Experience) -> Layout:
    """The layout of a packed experience's rows."""
    return Layout(experience["positions"], experience["segments"], experience["parents"])


def minibatches(
    prompts: Sequence[Sequence[int]],
    experience: Experience,
    *,
    epochs: int,
    count: int,
    row_length: int,
    pad_id: int,
    generator: torch.Generator,
) -> Iterator[Experience]:
    """`count` packed minibatches per epoch: in the given order in the first epoch, then newly permuted in each.

    So the first epoch has the same rows on which the old log-probabilities were computed in `count` parts, and its
    ratios are exactly 1: in bf16, other rows round differently, by up to 3% in a ratio. Prompts are already shuffled.
    Raises ValueError if there are fewer responses than minibatches.
    """
    total = len(prompts)
    if total < count:
        raise ValueError(f"rollout: {total} responses cannot make {count} minibatches; lower stage.minibatches")
    for epoch in range(epochs):
        order = torch.randperm(total, generator=generator) if epoch else torch.arange(total)
        for rows in order.tensor_split(count):
            chosen = rows.sort().values  # keeps equal prompts adjacent
            part = {name: tensor[chosen.to(tensor.device)] for name, tensor in experience.items()}
            yield packed([prompts[i] for i in chosen.tolist()], part, row_length=row_length, pad_id=pad_id)


def _fits(document: list[Sequence[int]], response: Sequence[int], row_length: int) -> bool:
    return sum(map(len, document)) + len(response) <= row_length
