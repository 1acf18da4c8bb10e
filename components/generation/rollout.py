"""Experience of an on-policy stage: drawn responses, what was known when they were drawn, minibatches of them.

A rollout is a dict of tensors, one row per response:
    response_ids, mask (N, R)      drawn tokens and which are real, the stop token included
    finished (N,)                  a stop token was drawn
    …  (N, R) or (N,)              whatever the stage adds: old_logprobs, advantages, returns, …
`packed` adds the rows that a model reads, and where in them every response token is predicted and lies.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from components.functional.masking import last_index
from components.models.attention.layout import Layout, pack

Experience = dict[str, Tensor]


def packed(prompts: Sequence[Sequence[int]], experience: Experience, *, row_length: int, pad_id: int) -> Experience:
    """`experience` with its prompts and responses packed into rows.

    Adds input_ids, positions, segments, parents (B, T); sources (N, R): flat index of the place that predicts each
    response token; last (N,): flat index of each response's last token.
    Consecutive equal prompts are one trunk, computed once for all their responses.
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
    last_place = last_index(mask)
    first = torch.tensor([start for spans in rows.spans for start, _ in spans[1:]])
    device = experience["mask"].device
    added = {
        "input_ids": rows.input_ids,
        **rows.layout._asdict(),
        "sources": sources,
        "last": first + last_place,
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
    """`count` packed minibatches per epoch: in the first epoch in the order given, then freshly permuted each time.

    The first epoch's rows are thus those that the old log-probabilities were computed on in `count` parts, and its
    ratios exactly 1: in bf16 other rows round otherwise, by up to 3% in a ratio. Prompts come shuffled already.
    Raises ValueError if there are fewer responses than minibatches.
    """
    total = len(prompts)
    if total < count:
        raise ValueError(f"rollout: {total} responses cannot make {count} minibatches; lower stage.minibatches")
    for epoch in range(epochs):
        order = torch.randperm(total, generator=generator) if epoch else torch.arange(total)
        for rows in order.tensor_split(count):
            chosen = rows.sort().values  # equal prompts stay neighbours
            part = {name: tensor[chosen.to(tensor.device)] for name, tensor in experience.items()}
            yield packed([prompts[i] for i in chosen.tolist()], part, row_length=row_length, pad_id=pad_id)


def _fits(document: list[Sequence[int]], response: Sequence[int], row_length: int) -> bool:
    return sum(map(len, document)) + len(response) <= row_length
