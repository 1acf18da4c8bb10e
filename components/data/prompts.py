"""Prompts for on-policy stages, and the loader that turns them into experience."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from components.data.dialogues import DialogueData
from components.data.loading import split
from components.data.loading.cache import Table, numbers_at
from components.data.loading.experience import ExperienceLoader
from components.data.loading.fitting import fit_prompt
from components.data.loading.sampler import TrainLoader
from components.data.records import formats
from components.data.records.errors import Unread
from components.data.records.formats import Record
from components.data.sources import builtin
from components.data.sources.source import Row, Source, digest
from components.data.text import TextData
from components.world.practice import Practice
from components.world.table_world import TableWorld
from components.world.world import World


class PromptsData(DialogueData):
    """Prompts as lists of {"ids", "prompt": messages, "reference": str | None, "columns"}, an ExperienceLoader for
    training.

    Reads prompts, and the prompts of demonstrations and comparisons; repeated prompts of a source count once, with the
    columns of the first. columns: all fields of the record but "prompt", as they are; a reward can read them.
    prompts_per_rollout: per process; if there are fewer prompts, some repeat. batch_size: held-out prompts per
    validation batch. max_prompt: tokens, null is half the context; longer prompts are cut as described in
    `fitting.fit_prompt`. pretraining: builds a TextData when called with tokenizer, context, cache_dir and seed; its
    batches accompany the experience (PPO-ptx). The built-in world provides all its questions; the held-out ones are for
    validation.
    """

    normalize = staticmethod(formats.prompts)
    features = {
        "ids": pa.list_(pa.int32()),
        "prompt": pa.string(),  # JSON
        "reference": pa.string(),
        "columns": pa.string(),  # JSON
    }

    train_examples: "Prompts"
    prompts_per_rollout: int
    max_prompt: int
    pretraining: TextData | None

    def __init__(
        self,
        *,
        prompts_per_rollout: int = 128,
        max_prompt: int | None = None,
        pretraining: Callable[..., TextData] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.prompts_per_rollout = prompts_per_rollout
        self.max_prompt = self.context // 2 if max_prompt is None else max_prompt
        if not 1 <= self.max_prompt < self.context:
            raise ValueError(f"max_prompt: got {self.max_prompt} tokens, expected 1 … {self.context - 1}")
        self.pretraining = None
        if pretraining is not None:
            self.pretraining = pretraining(
                tokenizer=self.tokenizer, context=self.context, cache_dir=self.cache_dir, seed=self.seed
            )

    def fingerprint(self) -> str:
        own = super().fingerprint()
        return own if self.pretraining is None else digest([own, self.pretraining.fingerprint()])

    @property
    def limit(self) -> str:
        return f"max_prompt, {self.max_prompt} tokens"

    def settings(self) -> dict[str, Any]:
        # another value of "columns" whenever other columns are stored
        return super().settings() | {"max_prompt": self.max_prompt, "columns": "all"}

    def records_of(self, source: Source, counts: Counter[str]) -> Iterator[tuple[Row, Record]]:
        seen: set[int] = set()
        for row, record in super().records_of(source, counts):
            key = split.key([record["prompt"], record["tools"]] if "tools" in record else record["prompt"])
            if key in seen:
                counts["duplicates"] += 1
                continue
            seen.add(key)
            yield row, record | {"columns": _columns(row.value)}

    def tokenize(self, record: Record, counts: Counter[str]) -> list[dict[str, Any]]:
        ids, cut = fit_prompt(self.tokenizer, record["prompt"], self.max_prompt, record.get("tools"))
        counts["truncated"] += cut
        prompt, columns = json.dumps(record["prompt"]), json.dumps(record["columns"])
        stored = {"prompt": prompt, "reference": record["reference"], "columns": columns}
        return [{"ids": ids, **stored, "tokens": len(ids)}]

    def prepare_data(self) -> None:
        super().prepare_data()
        if self.pretraining is not None:
            self.pretraining.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        if self.pretraining is not None:
            self.pretraining.setup(stage)

    def arrange(self, tables: list[Table], train: np.ndarray, held_out: np.ndarray) -> None:
        self.train_examples, self.val_examples = Prompts(tables, train), Prompts(tables, held_out)

    def largest_prompts(self, number: int) -> int:
        longest_first = np.sort(self.train_examples.tokens)[::-1]
        return int(np.resize(longest_first, number).sum())  # some repeat if there are fewer

    def judge_responses(
        self, prompts: Sequence[dict[str, Any]], responses: Sequence[list[int]], finished: Sequence[bool]
    ) -> dict[str, float]:
        """Judgments of the built-in world on responses, one per prompt: means of gold (the true quality), correct and,
        if it checks names, wrong_name. {} for any other data, where true quality is unknown."""
        if not self.is_builtin:
            return {}
        judgments = [
            self.judge.judge(prompt["prompt"][-1]["content"], self.tokenizer.decode(ids), whole)
            for prompt, ids, whole in zip(prompts, responses, finished, strict=True)
        ]
        rows = [judgment.metrics() for judgment in judgments]
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

    @cached_property
    def judge(self) -> World | TableWorld | Practice:
        """The built-in world, of any kind."""
        return builtin.make_world(self.world or {})

    def collate(self, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return examples

    def make_train_loader(self) -> ExperienceLoader:
        if self.trainer is None:
            raise ValueError("prompts: the training loader needs a Trainer; pass this module to Trainer.fit")
        text: TrainLoader | None = None
        if self.pretraining is not None:
            self.pretraining.trainer = self.trainer
            text = self.pretraining.train_dataloader()
        return ExperienceLoader(
            self.train_examples,
            prompts_per_rollout=self.prompts_per_rollout,
            seed=self.seed,
            trainer=self.trainer,
            pretraining=text,
        )


def _columns(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record that a reward can read: all that are read from its file, except the prompt."""
    return {name: value for name, value in row.items() if name != "prompt" and not isinstance(value, Unread)}


class Prompts:
    """Prompt dicts at [source, row]. tokens: (len(self),) numbers of tokens."""

    lengths = None  # they are only read in rollouts

    def __init__(self, tables: list[Table], order: np.ndarray) -> None:
        self.tables, self.order = tables, order
        self.tokens = numbers_at(tables, "tokens", order)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, row = self.order[index].tolist()
        stored = self.tables[source][row]
        messages, columns = json.loads(stored["prompt"]), json.loads(stored["columns"])
        return {"ids": stored["ids"], "prompt": messages, "reference": stored["reference"], "columns": columns}
