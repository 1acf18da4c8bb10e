"""Comparisons for reward models, DPO, SimPO and ORPO: every prompt once, continued by its ranked answers."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from components.data.batches import PreferenceBatch, packed_answers
from components.data.dialogues import DialogueData
from components.data.loading.cache import Table
from components.data.loading.fitting import fit_answers
from components.data.loading.sampler import BatchLoader
from components.data.records import formats, labels
from components.data.records.dialogue import Message
from components.data.records.formats import Record
from components.data.sources import builtin
from components.data.sources.origin import demonstrations_source, with_demonstrations
from components.data.sources.source import Source, records, refuse
from components.functional.evenly import evenly
from components.functional.seeding import numpy_seeded
from components.tokenizer.codec import TokenizerError


class PreferenceData(DialogueData):
    """Comparisons as PreferenceBatch; batch_size counts records: a prompt with all its ranked answers, never split.

    max_completions: answers used per record, chosen evenly from best to worst; null uses all. group_by_prompt puts all
    records of one prompt into the same batch, each as a separate group; batch_size then counts prompts. Answers with
    equal tokens, after cutting, are merged into one with their mean rank. Records in which no answer is then better
    than another are dropped; `counts` has the reasons (equal, equal_once_cut, tied) and how many records had answers
    merged. A record that ranks two answers in the opposite order of an earlier one is kept, as another person's
    judgment, and counted as contradicting. Text that does not fit into context is cut as described in
    `fitting.fit_answers`, and counted once per record. demonstrations: chat records whose scores should average zero, a
    path or "world"; null takes the best answers of the training records. num_demonstrations: at most this many.
    comparisons, completions: of the built-in world; answers_seed: of its crowd's answers.
    """

    normalize = staticmethod(formats.preference)
    features = {
        "prompt": pa.list_(pa.int32()),
        "completions": pa.list_(pa.list_(pa.int32())),
        "finished": pa.list_(pa.bool_()),
        "ranks": pa.list_(pa.float32()),
        "category": pa.string(),
    }

    explained: ClassVar[dict[str, str]] = {
        "equal": "dropped: all answers are equal",
        "equal_once_cut": "dropped: all answers are equal once cut to the context",
        "tied": "dropped: all answers have the same rank",
        "merged": "with equal answers, merged into one with their mean rank",
        "contradicting": "rank two answers in the opposite order of an earlier record, and are kept",
    }

    def __init__(
        self,
        *,
        comparisons: int = 2500,
        completions: int = 4,
        max_completions: int | None = None,
        group_by_prompt: bool = False,
        demonstrations: str | None = None,
        num_demonstrations: int = 512,
        answers_seed: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if max_completions is not None and max_completions < 2:
            raise ValueError(f"max_completions: got {max_completions}, expected at least 2, or null for all")
        self.comparisons, self.completions = comparisons, completions
        self.max_completions, self.group_by_prompt = max_completions, group_by_prompt
        self.demonstrations, self.num_demonstrations = demonstrations, num_demonstrations
        self.answers_seed = answers_seed

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"max_completions": self.max_completions}

    def fingerprint(self) -> str:
        return with_demonstrations(super().fingerprint(), self.demonstrations)

    def tokenize(self, record: Record, counts: Counter[str]) -> list[dict[str, Any]]:
        ranks = np.array(record["ranks"])
        order = np.argsort(ranks, kind="stable").tolist()
        kept = sorted(order if self.max_completions is None else evenly(order, self.max_completions))
        answers = [record["completions"][i] for i in kept]
        columns, cut = self._fitted(record, answers, ranks[kept].tolist())
        different = _without_equals(columns)
        if len(different["completions"]) < 2:
            equal = all(answer == answers[0] for answer in answers)
            counts["equal" if equal else "equal_once_cut"] += 1
            return []
        if len(set(different["ranks"])) < 2:
            counts["tied"] += 1
            return []
        counts["merged"] += len(different["completions"]) < len(kept)
        counts["truncated"] += cut
        return [{**different, "category": record.get("category", "")}]

    def _rows(self, source: Source, counts: Counter[str]) -> Iterator[dict[str, Any]]:
        seen: set[int] = set()
        for columns in super()._rows(source, counts):
            pairs = _pairs(columns)
            counts["contradicting"] += any(pair ^ 1 in seen for pair in pairs)
            seen.update(pairs)
            yield columns

    def arrange(self, tables: list[Table], train: np.ndarray, held_out: np.ndarray) -> None:
        self.train_examples, self.val_examples = (
            Comparisons(tables, self._units(tables, part)) for part in (train, held_out)
        )

    def collate(self, examples: list[list[Record]]) -> PreferenceBatch:
        """A batch of examples, each a list of records."""
        chosen = [record for example in examples for record in example]
        documents = [[record["prompt"], *record["completions"]] for record in chosen]
        groups = [g for g, record in enumerate(chosen) for _ in record["completions"]]
        return PreferenceBatch.of(
            groups=torch.tensor(groups),
            ranks=torch.tensor([rank for record in chosen for rank in record["ranks"]], dtype=torch.float32),
            finished=torch.tensor([whole for record in chosen for whole in record["finished"]]),
            **packed_answers(documents, context=self.context, filler=self.tokenizer.pad_id),
        )

    def train_batches(self) -> BatchLoader:
        """The training records in their order, for evaluating on them."""
        return BatchLoader(self.train_examples, self.collate, **self._loading(self.train_examples))

    def demonstration_batches(self) -> Iterator[PreferenceBatch]:
        """Batches with one answer per prompt, whose scores should average zero; the same on every rank."""
        shown = self._demonstrations()  # tokenized lazily
        while batch := [[record] for record in itertools.islice(shown, self.batch_size)]:
            yield self.collate(batch)

    def _demonstrations(self) -> Iterator[Record]:
        rng = numpy_seeded(self.seed, 0x64656D6F)
        if self.demonstrations is None:
            for i in rng.permutation(len(self.train_examples))[: self.num_demonstrations]:
                record = self.train_examples[i][0]
                best = int(np.argmin(record["ranks"]))
                of_best = {name: [record[name][best]] for name in ("completions", "finished", "ranks")}
                yield {**record, **of_best}
            return
        source = self._demonstration_source(self.demonstrations)
        counts: Counter[str] = Counter()
        read = self.reader(labels.chat)
        chats = list(records(source, read, on_malformed=self.on_malformed, counts=counts))
        for i in rng.permutation(len(chats))[: self.num_demonstrations]:
            row, record = chats[i]
            messages = record["messages"]
            last = max(m for m, message in enumerate(messages) if message["role"] == "assistant")
            try:
                yield self._fitted({**record, "prompt": messages[:last]}, [messages[last]], [0.0])[0]
            except TokenizerError as error:
                refuse(row, error, on_malformed=self.on_malformed, counts=counts)

    def _demonstration_source(self, path: str) -> Source:
        if (source := demonstrations_source(path)) is not None:
            return source
        if self.world is None:
            raise ValueError('demonstrations: "world" needs data.world; set it, or give a path or null')
        return builtin.world_source(self.world, "chat", {"demonstrations": self.num_demonstrations})

    def _fitted(self, record: Record, answers: list[str | Message], ranks: list[float]) -> tuple[dict[str, Any], bool]:
        """The stored columns of a ranking of answers to a record's prompt, and whether anything was cut."""
        made = fit_answers(self.tokenizer, record["prompt"], answers, self.context, record.get("tools"))
        tokens = len(made.prompt) + sum(map(len, made.answers))
        columns = {"prompt": made.prompt, "completions": made.answers, "finished": made.finished}
        return {**columns, "ranks": ranks, "tokens": tokens}, made.cut

    def _units(self, tables: list[Table], indices: np.ndarray) -> list[list[tuple[int, int]]]:
        """Units that are never split: single records, or all records of a prompt."""
        pairs = [(int(s), int(r)) for s, r in indices]
        if not self.group_by_prompt:
            return [[pair] for pair in pairs]
        keys = [table.numbers("key") for table in tables]
        units: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for s, r in pairs:
            units[int(keys[s][r])].append((s, r))
        return list(units.values())


def _without_equals(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns of a ranking with equal answers merged into one, with their mean rank."""
    indices: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, answer in enumerate(columns["completions"]):
        indices[tuple(answer)].append(index)
    kept = [equal[0] for equal in indices.values()]
    ranks = [sum(columns["ranks"][index] for index in equal) / len(equal) for equal in indices.values()]
    answers, finished = ([columns[name][index] for index in kept] for name in ("completions", "finished"))
    tokens = len(columns["prompt"]) + sum(map(len, answers))
    return {**columns, "completions": answers, "finished": finished, "ranks": ranks, "tokens": tokens}


def _pairs(columns: dict[str, Any]) -> list[int]:
    """A number for each pair of answers of different rank; for the opposite order it differs in the last bit."""
    prompt = tuple(columns["prompt"])
    ranked = [(tuple(answer), rank) for answer, rank in zip(columns["completions"], columns["ranks"], strict=True)]
    return [
        hash((prompt, first, second)) * 2 + (above < below)
        for (first, above), (second, below) in combinations(sorted(ranked), 2)
        if above != below
    ]


class Comparisons:
    """Lists of records at [(source, row), …]; lengths: their numbers of tokens."""

    def __init__(self, tables: list[Table], units: list[list[tuple[int, int]]]) -> None:
        self.tables, self.units = tables, units
        tokens = [table.numbers("tokens") for table in tables]
        self.lengths = np.array([sum(tokens[source][row] for source, row in unit) for unit in units])

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, index: int) -> list[Record]:
        return [self.tables[source][row] for source, row in self.units[index]]
