"""Demonstrations for fine-tuning: dialogues packed into rows, with the loss on the assistant's messages."""

from collections import Counter
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch

from components.data.batches import LMBatch
from components.data.dialogues import DialogueData
from components.data.loading.cache import Ragged, Table, numbers_at
from components.data.records import labels
from components.data.records.dialogue import Message
from components.data.records.formats import Record
from components.models.attention.layout import pack
from components.tokenizer.tokenizer import Rendered


class ChatData(DialogueData):
    """Dialogues as LMBatch; batch_size counts dialogues, packed into as few rows as they need.

    Targets are the assistant's tokens and its ends of turn, except in messages of weight 0. train_on: "all" of the
    assistant's messages, or only the "last", which gives the others weight 0; calls of tools are messages like any
    other. With train_on_prompt, targets are all tokens except the first and those of weight 0. If the chat template
    rewrites earlier answers (drops their thinking), a dialogue becomes one example per answer, each with the prompt
    that this answer follows: `counts["unrolled"]` such dialogues. A comparison is the demonstration of its best answer:
    `counts["preferred"]`; an answer that is labeled as undesirable is malformed. An example longer than context is cut
    at its end, without adding an end of turn, and dropped if no target is left; `counts` has the number of records cut
    or dropped. demonstrations: number of records of the built-in world.
    """

    normalize = staticmethod(labels.chat)
    features = {"ids": pa.list_(pa.int32()), "mask": pa.list_(pa.uint8())}

    explained: ClassVar[dict[str, str]] = {
        "dropped": "dropped: no answer to learn from within the context",
        "preferred": "are comparisons, of which the best answer is learned",
    }

    def __init__(
        self,
        *,
        demonstrations: int = 4000,
        train_on: Literal["all", "last"] = "all",
        train_on_prompt: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.demonstrations, self.train_on, self.train_on_prompt = demonstrations, train_on, train_on_prompt

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"train_on": self.train_on, "train_on_prompt": self.train_on_prompt}

    def tokenize(self, record: Record, counts: Counter[str]) -> list[dict[str, Any]]:
        counts["preferred"] += "preferred" in record
        if self.train_on == "last":
            record = record | {"messages": _last_alone(record["messages"])}
        made = self.tokenizer.examples(record["messages"], record.get("tools"))
        if self.train_on_prompt:
            made = self._with_prompts(record, made)
        stored = [
            {
                "ids": ids[: self.context],
                "mask": [*map(int, mask[: self.context])],
                "tokens": min(len(ids), self.context),
            }
            for ids, mask in made
            if any(mask[1 : self.context])
        ]
        counts["truncated"] += bool(stored) and any(len(ids) > self.context for ids, _ in made)
        counts["unrolled"] += len(made) > 1
        return stored

    def _with_prompts(self, record: Record, made: list[Rendered]) -> list[Rendered]:
        """The examples with every token a target except those of answers of weight 0."""
        unweighted = [{name: value for name, value in m.items() if name != "weight"} for m in record["messages"]]
        answers = self.tokenizer.examples(unweighted, record.get("tools"))
        return [
            Rendered(ids, [target or not is_answer for target, is_answer in zip(mask, every.mask, strict=True)])
            for (ids, mask), every in zip(made, answers, strict=True)
        ]

    def arrange(self, tables: list[Table], train: np.ndarray, held_out: np.ndarray) -> None:
        columns = [(Ragged(table, "ids"), Ragged(table, "mask")) for table in tables]
        self.train_examples, self.val_examples = (
            Dialogues(columns, part, numbers_at(tables, "tokens", part)) for part in (train, held_out)
        )
        self.byte_lengths = torch.tensor(self.tokenizer.byte_lengths)

    def collate(self, examples: list[tuple[np.ndarray, np.ndarray]]) -> LMBatch:
        documents = [[ids.tolist()] for ids, _ in examples]
        rows = pack(documents, row_length=self.context, filler=self.tokenizer.pad_id)
        targets = torch.full_like(rows.input_ids, self.tokenizer.pad_id)
        mask = torch.zeros_like(targets, dtype=torch.bool)
        for (ids, counted), [(start, length)] in zip(examples, rows.spans, strict=True):
            positions = slice(start, start + length - 1)  # of a dialogue in the flat rows, except its last token
            target = torch.from_numpy(counted[1:].astype(bool))
            mask.view(-1)[positions] = target
            targets.view(-1)[positions][target] = torch.from_numpy(ids[1:].astype(np.int64))[target]
        return LMBatch.of(rows.input_ids, targets, mask, rows.layout, self.byte_lengths[targets[mask]].sum())


def _last_alone(messages: list[Message]) -> list[Message]:
    """The messages, with weight 0 for all of the assistant's but the last."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return [
        message | {"weight": 0} if message["role"] == "assistant" and i != last else message
        for i, message in enumerate(messages)
    ]


class Dialogues:
    """(ids, mask) of the dialogues at [source, row]; lengths: their numbers of tokens."""

    def __init__(self, columns: list[tuple[Ragged, Ragged]], order: np.ndarray, lengths: np.ndarray) -> None:
        self.columns, self.order, self.lengths = columns, order, lengths

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        source, row = self.order[index]
        ids, mask = self.columns[source]
        return ids[row], mask[row]
