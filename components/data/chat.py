"""Demonstrations for fine-tuning: dialogues packed into rows, with the loss on the assistant's messages."""

from collections import Counter
from typing import Any

import datasets
import numpy as np
import torch

from components.data.base import RecordData
from components.data.batches import LMBatch
from components.data.loading.cache import Ragged
from components.data.records import formats
from components.data.records.formats import Record
from components.models.attention.layout import pack
from components.tokenizer.tokenizer import Rendered


class ChatData(RecordData):
    """Dialogues as LMBatch; batch_size counts dialogues, packed into as few rows as they need.

    Targets are the assistant's tokens and its ends of turn, except in messages of weight 0; with train_on_prompt, all
    tokens except the first and those of weight 0. If the chat template rewrites earlier answers (drops their thinking),
    a dialogue becomes one example per answer, each with the prompt that this answer follows: `counts["unrolled"]` such
    dialogues. An example longer than context is cut at its end, without adding an end of turn, and dropped if no target
    is left; `counts` has the number of records cut or dropped. demonstrations: number of records of the built-in world.
    """

    normalize = staticmethod(formats.chat)
    features = datasets.Features(
        {"ids": datasets.List(datasets.Value("int32")), "mask": datasets.List(datasets.Value("uint8"))}
    )

    def __init__(self, *, demonstrations: int = 4000, train_on_prompt: bool = False, **common: Any) -> None:
        super().__init__(**common)
        self.demonstrations, self.train_on_prompt = demonstrations, train_on_prompt

    def settings(self) -> dict[str, Any]:
        return {"context": self.context, "train_on_prompt": self.train_on_prompt}

    def tokenize(self, record: Record, counts: Counter[str]) -> list[dict[str, Any]]:
        made = self.tokenizer.examples(record["messages"], record.get("tools"))
        if self.train_on_prompt:
            made = self._with_prompts(record, made)
        stored = [
            {"ids": ids[: self.context], "mask": mask[: self.context], "tokens": min(len(ids), self.context)}
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

    def arrange(self, tables: list[datasets.Dataset], train: np.ndarray, held_out: np.ndarray) -> None:
        columns = [(Ragged(table, "ids"), Ragged(table, "mask")) for table in tables]
        tokens = [table.data.column("tokens").to_numpy() for table in tables]
        self.train_examples, self.val_examples = (Dialogues(columns, part, tokens) for part in (train, held_out))
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
        return LMBatch(rows.input_ids, targets, mask, rows.layout, self.byte_lengths[targets[mask]].sum())


class Dialogues:
    """(ids, mask) of the dialogues at [source, row]; lengths: their numbers of tokens."""

    def __init__(self, columns: list[tuple[Ragged, Ragged]], order: np.ndarray, tokens: list[np.ndarray]) -> None:
        self.columns, self.order = columns, order
        self.lengths = np.array([tokens[source][row] for source, row in order])

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        source, row = self.order[index]
        ids, mask = self.columns[source]
        return ids[row], mask[row]
