"""What scores responses: one protocol for reward models, tables and Python functions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from components.generation.responses import response_scores
from components.generation.rollout import PackedResponses
from components.tokenizer.tokenizer import Tokenizer

Message = dict[str, Any]


@dataclass(frozen=True)
class RewardBatch:
    """N responses to score, and the records of their prompts; responses to one prompt are adjacent.

    prompts: messages. prompt_ids: as the policy reads them. response_ids: sampled tokens, the stop token included.
    finished: whether each response ended by itself. columns: all fields of the prompts' records but the prompt, by
    name; None where a record has no such field. decode: ids → text without special tokens. prefill: the start of every
    answer that the template's prompts include. rows: the same responses packed for a model to read, in order, in parts.
    """

    prompts: Sequence[list[Message]]
    prompt_ids: Sequence[list[int]]
    response_ids: Sequence[list[int]]
    finished: Sequence[bool]
    columns: Mapping[str, Sequence[Any]]
    decode: Callable[[Sequence[int]], str]
    prefill: str = ""
    rows: Sequence[PackedResponses] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.response_ids)

    @cached_property
    def prompt_texts(self) -> list[str]:
        """The prompts as the policy reads them, without special tokens."""
        return [self.decode(ids) for ids in self.prompt_ids]

    @cached_property
    def texts(self) -> list[str]:
        """The responses as texts."""
        return [self.prefill + self.decode(ids) for ids in self.response_ids]


def batch_of(
    prompts: Sequence[Mapping[str, Any]],
    response_ids: Sequence[list[int]],
    finished: Sequence[bool],
    tokenizer: Tokenizer | None,
    rows: Sequence[PackedResponses] = (),
) -> RewardBatch:
    """One response to each prompt of a PromptsData. tokenizer: None if no text is read."""
    records = [prompt.get("columns", {}) for prompt in prompts]
    names = dict.fromkeys(name for record in records for name in record)
    return RewardBatch(
        prompts=[prompt["prompt"] for prompt in prompts],
        prompt_ids=[prompt["ids"] for prompt in prompts],
        response_ids=response_ids,
        finished=finished,
        columns={name: [record.get(name) for record in records] for name in names},
        decode=tokenizer.decode if tokenizer else str,
        prefill=tokenizer.prefill if tokenizer else "",
        rows=rows,
    )


class Scores(NamedTuple):
    """total: (N,) float32, the scores. parts: (N, K) float32 that they are weighted sums of, NaN where one does not
    apply to the record and was left out; None for a reward without parts."""

    total: Tensor
    parts: Tensor | None = None

    def to(self, device: torch.device) -> "Scores":
        return Scores(self.total.to(device), None if self.parts is None else self.parts.to(device))


class Reward(Protocol):
    """Anything that scores responses."""

    @property
    def weights(self) -> Mapping[str, float]:
        """The weights of the K parts of its scores, by name; empty if they have no parts."""
        ...

    def score(self, batch: RewardBatch) -> Scores:
        """The scores of all N responses. Raises ValueError, naming the record, for one that cannot be scored."""
        ...


class ModelReward:
    """A network's score at each response's last token: a reward model, or a table in its place. Reads packed rows."""

    weights: Mapping[str, float] = MappingProxyType({})

    def __init__(self, model: Any) -> None:
        self.model = model

    def score(self, batch: RewardBatch) -> Scores:
        return Scores(torch.cat([response_scores(self.model, rows) for rows in batch.rows]))


def as_reward(scorer: nn.Module | Reward) -> Reward:
    """A network as a Reward; anything else is one already."""
    return ModelReward(scorer) if isinstance(scorer, nn.Module) else scorer
