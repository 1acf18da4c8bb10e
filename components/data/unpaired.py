"""Answers labeled one by one, for KTO: every prompt once, continued by its answer and by one to another prompt."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from components.data.batches import UnpairedBatch, packed_answers
from components.data.dialogues import DialogueData
from components.data.loading.cache import Table, numbers_at
from components.data.loading.fitting import fit_answers
from components.data.records import labels
from components.data.records.errors import SourceError
from components.data.records.formats import Record
from components.data.sources.source import Source
from components.functional.seeding import numpy_seeded


class UnpairedData(DialogueData):
    """Labeled answers as UnpairedBatch; batch_size counts answers.

    A comparison becomes one record for each of its answers (see `labels.unpaired`); `counts` has how many answers it
    leaves out because they are better than as many others as they are worse than (undecided). An answer whose label
    contradicts an earlier record is kept, as another person's judgment, and counted as contradicting. Text that does
    not fit into context is cut as described in `fitting.fit_answers`, and counted once per answer. comparisons,
    completions, answers_seed: of the built-in world, as in PreferenceData.

    Each answer comes with a mismatched one for KTO's reference point: the answer of a record sampled uniformly among
    those with another prompt, once for all epochs, by the run's seed alone, so that it does not depend on batches,
    processes or resuming. It is cut to the context. Training records get answers of training records, held-out ones
    those of held-out records, or of training records if only one prompt is held out.
    """

    normalize = staticmethod(labels.unpaired)
    features = {
        "prompt": pa.list_(pa.int32()),
        "completion": pa.list_(pa.int32()),
        "desirable": pa.bool_(),
    }
    train_examples: "LabeledAnswers"
    explained: ClassVar[dict[str, str]] = {
        "tied": "dropped: all answers have the same rank",
        "undecided": "have answers that are better than as many others as they are worse than, which are left out",
        "contradicting": "label an answer in the opposite way of an earlier record, and are kept",
    }

    def __init__(self, *, comparisons: int = 2500, completions: int = 4, answers_seed: int = 0, **common: Any) -> None:
        super().__init__(**common)
        self.comparisons, self.completions, self.answers_seed = comparisons, completions, answers_seed

    def tokenize(self, record: Record, counts: Counter[str]) -> list[dict[str, Any]]:
        labeled = [pair for pair in zip(record["completions"], record["labels"], strict=True) if pair[1] is not None]
        counts["undecided"] += 0 < len(labeled) < len(record["labels"])
        counts["tied"] += not labeled
        rows = []
        for answer, desirable in labeled:
            made = fit_answers(self.tokenizer, record["prompt"], [answer], self.context, record.get("tools"))
            counts["truncated"] += made.cut
            counts["desirable" if desirable else "undesirable"] += 1
            tokens = len(made.prompt) + len(made.answers[0])
            rows.append(
                {"prompt": made.prompt, "completion": made.answers[0], "desirable": desirable, "tokens": tokens}
            )
        return rows

    def _rows(self, source: Source, counts: Counter[str]) -> Iterator[dict[str, Any]]:
        seen: set[int] = set()  # a number for each answer to a prompt; its label is the last bit
        for columns in super()._rows(source, counts):
            number = hash((tuple(columns["prompt"]), tuple(columns["completion"]))) * 2 + columns["desirable"]
            counts["contradicting"] += number ^ 1 in seen
            seen.add(number)
            yield columns

    def arrange(self, tables: list[Table], train: np.ndarray, held_out: np.ndarray) -> None:
        train_keys, held_out_keys = (numbers_at(tables, "key", part) for part in (train, held_out))
        if len(np.unique(train_keys)) < 2:
            raise SourceError(
                "unpaired data: all training records have the same prompt, expected at least 2 different ones, since "
                "KTO measures its reference point on answers to other prompts"
            )
        alone = len(np.unique(held_out_keys)) < 2
        rng = numpy_seeded(self.seed, 0x6D69736D)
        of_train = train[mismatched(train_keys, train_keys, rng)]
        pool, pool_keys = (train, train_keys) if alone else (held_out, held_out_keys)
        of_held_out = pool[mismatched(held_out_keys, pool_keys, rng)]
        self.train_examples = LabeledAnswers(tables, train, of_train)
        self.val_examples = LabeledAnswers(tables, held_out, of_held_out)
        desirable, undesirable = self.balance
        if not desirable or not undesirable:
            label = "desirable" if desirable else "undesirable"
            raise SourceError(f"unpaired data: all {len(train)} training records are {label}, expected both kinds")

    @property
    def balance(self) -> tuple[int, int]:
        """How many training records are desirable, and how many are not."""
        desirable = int(self.train_examples.desirable.sum())
        return desirable, len(self.train_examples) - desirable

    def collate(self, examples: list[Record]) -> UnpairedBatch:
        documents = [
            [record["prompt"], record["completion"], record["mismatched"][: self.context - len(record["prompt"])]]
            for record in examples
        ]
        return UnpairedBatch.of(
            desirable=torch.tensor([record["desirable"] for record in examples]),
            **packed_answers(documents, context=self.context, filler=self.tokenizer.pad_id),
        )


class LabeledAnswers:
    """Records at (M, 2) [[source, row], …], each with the completion of its partner as `mismatched`.

    lengths: (M,) their tokens, without the mismatched ones; desirable: (M,) bool.
    """

    def __init__(self, tables: list[Table], places: np.ndarray, partners: np.ndarray) -> None:
        self.tables, self.places, self.partners = tables, places, partners
        self.lengths = numbers_at(tables, "tokens", places)
        self.desirable = numbers_at(tables, "desirable", places)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Record:
        (source, row), (other, place) = self.places[index].tolist(), self.partners[index].tolist()
        return {**self.tables[source][row], "mismatched": self.tables[other][place]["completion"]}


def mismatched(keys: np.ndarray, pool: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) for each of keys (N,) an index into pool (M,), sampled uniformly among those of another key, with
    replacement. Each key must have one."""
    order = np.argsort(pool, kind="stable")
    first, last = (np.searchsorted(pool[order], keys, side=side) for side in ("left", "right"))
    steps = rng.integers(len(pool) - (last - first))
    return order[(last + steps) % len(pool)]
