"""Experience of an on-policy stage: sampled responses, what was computed when they were sampled, and minibatches.

N counts responses, R the tokens of the longest. Masked entries of (N, R) tensors have no meaning.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from components.functional.masking import last_index, true_places
from components.models.attention.layout import Layout, pack


class PackedResponses(NamedTuple):
    """Responses, each after its prompt, in the packed rows (B, T) that models read.

    input_ids     (B, T) int64
    layout        of the rows
    response_ids  (N, R) int64, the sampled tokens
    mask          (N, R) bool, True on response tokens, the stop token included
    sources       (N, R) int64, flat index in B*T of the token that predicts each response token, 0 where masked
    last          (N,) int64, flat index of each response's last token
    real          (n,) int64, flat index in N*R of each response token: the True places of the mask
    """

    input_ids: Tensor
    layout: Layout
    response_ids: Tensor
    mask: Tensor
    sources: Tensor
    last: Tensor
    real: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, as plain data for a checkpoint."""
        own = {name: field for name, field in self._asdict().items() if isinstance(field, Tensor)}
        return {**own, **self.layout._asdict()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `tensors`."""
        if "real" not in tensors:  # of a checkpoint from before it was kept
            tensors = {**tensors, "real": true_places(tensors["mask"])}
        layout = Layout(*(tensors[name] for name in Layout._fields))
        return cls(layout=layout, **{name: tensors[name] for name in cls._fields if name != "layout"})


class ModelOutputs(NamedTuple):
    """What the models of a stage compute on N responses.

    old_logprobs        (N, R) nats, of the policy that sampled them
    reference_logprobs  (N, R) nats
    entropy             (N, R) nats, of the policy's distribution at each token
    old_values          (N, R), by the value model before each token, in the unit of rewards; None without one
    """

    old_logprobs: Tensor
    reference_logprobs: Tensor
    entropy: Tensor
    old_values: Tensor | None = None

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """The outputs on all responses of all parts, in order."""
        return cls._make(None if fields[0] is None else torch.cat(fields) for fields in zip(*parts, strict=True))


class Experience(NamedTuple):
    """N responses and everything that a stage learns from, one row per response.

    response_ids, mask  (N, R) int64, bool, as in PackedResponses
    finished            (N,) bool, True if a stop token was sampled
    rewards             (N,), the scaled score, or what replaces it for a response that did not end by itself
    old_logprobs, reference_logprobs, entropy, old_values    as in ModelOutputs
    kl                  (N, R) nats, log π_old − log π_ref
    advantages          (N, R), or (N,) if a whole response is one action; None before they are estimated
    returns             (N, R), what the value model learns; None without one
    reward_parts        (N, K), whose weighted sums are the unscaled scores; NaN where a part does not apply; or None
    """

    response_ids: Tensor
    mask: Tensor
    finished: Tensor
    rewards: Tensor
    old_logprobs: Tensor
    reference_logprobs: Tensor
    entropy: Tensor
    kl: Tensor
    old_values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None
    reward_parts: Tensor | None = None

    def select(self, rows: Tensor) -> Self:
        """The responses with the indices `rows` (M,) int64, in this order."""
        return type(self)._make(None if field is None else field[rows.to(field.device)] for field in self)


class Minibatch(NamedTuple):
    """Responses of one update, packed, and what their loss needs; the fields are those of Experience."""

    packed: PackedResponses
    old_logprobs: Tensor
    reference_logprobs: Tensor
    old_values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """(N, R) bool, True on response tokens."""
        return self.packed.mask

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, as plain data for a checkpoint."""
        own = {name: field for name, field in self._asdict().items() if isinstance(field, Tensor)}
        return {**self.packed.tensors(), **own}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `tensors`."""
        own = {name: tensors[name] for name in cls._fields if name in tensors}
        return cls(packed=PackedResponses.of(tensors), **own)


def packed(
    prompts: Sequence[Sequence[int]], response_ids: Tensor, mask: Tensor, *, row_length: int, pad_id: int
) -> PackedResponses:
    """Prompts and their responses (N, R) packed into rows.

    Consecutive equal prompts share a trunk, computed once for all their responses, as long as a row has room.
    """
    device, on_cpu = mask.device, mask.cpu()
    responses = [ids[keep].tolist() for ids, keep in zip(response_ids.cpu(), on_cpu, strict=True)]
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
    first = torch.tensor([start for spans in rows.spans for start, _ in spans[1:]])
    return PackedResponses(
        input_ids=rows.input_ids.to(device),
        layout=Layout(*(field.to(device) for field in rows.layout)),
        response_ids=response_ids,
        mask=mask,
        sources=sources.to(device),
        last=(first + last_index(on_cpu)).to(device),
        real=true_places(on_cpu).to(device),
    )


def shares(total: int, *, epochs: int, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The indices, (n,) int64, of the responses in each of `count` minibatches per epoch, of `total` responses: in the
    given order in the first epoch, then newly permuted in each.

    So the first epoch has the same rows on which the old log-probabilities were computed in `count` parts, and its
    ratios are exactly 1: in bf16, other rows round differently, by up to 3% in a ratio. Prompts are already shuffled.
    Raises ValueError if there are fewer responses than minibatches.
    """
    if total < count:
        raise ValueError(f"rollout: {total} responses cannot make {count} minibatches; lower stage.minibatches")
    for epoch in range(epochs):
        order = torch.randperm(total, generator=generator) if epoch else torch.arange(total)
        for rows in order.tensor_split(count):
            yield rows.sort().values  # keeps equal prompts adjacent


def minibatches(
    prompts: Sequence[Sequence[int]],
    experience: Experience,
    *,
    epochs: int,
    count: int,
    row_length: int,
    pad_id: int,
    generator: torch.Generator,
) -> Iterator[Minibatch]:
    """The packed minibatches of `shares`."""
    for chosen in shares(len(prompts), epochs=epochs, count=count, generator=generator):
        part = experience.select(chosen)
        asked = [prompts[i] for i in chosen.tolist()]
        yield Minibatch(
            packed=packed(asked, part.response_ids, part.mask, row_length=row_length, pad_id=pad_id),
            old_logprobs=part.old_logprobs,
            reference_logprobs=part.reference_logprobs,
            old_values=part.old_values,
            advantages=part.advantages,
            returns=part.returns,
        )


def _fits(document: list[Sequence[int]], response: Sequence[int], row_length: int) -> bool:
    return sum(map(len, document)) + len(response) <= row_length
