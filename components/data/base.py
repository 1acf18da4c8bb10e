"""The base of all data modules: chooses the source, tokenizes once, splits, mixes, and makes batches."""

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from components.data.data_contract import DataContract
from components.data.loading import split
from components.data.loading.cache import VERSION, Table, stored
from components.data.loading.mixing import Share, mix
from components.data.loading.sampler import BatchLoader, Examples, TrainLoader
from components.data.loading.split import in_part
from components.data.records.dialogue import message_texts, unread
from components.data.records.errors import SourceError
from components.data.records.formats import Record
from components.data.sources.dataset_folder import Selection
from components.data.sources.origin import Origin, world_sizes
from components.data.sources.procedural import Problems
from components.data.sources.source import OnMalformed, Row, Source, digest, records, refuse
from components.system.limits import Count, NonNegativeInt
from components.tokenizer.codec import TemplateError, TokenizerError
from components.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)
BY_PROMPT, TRAINING, HELD_OUT = -1, 0, 1  # the stored column "held_out"
UNREAD = "unread_"  # prefix of counts: records with a field in their messages that is not read


class RecordData(DataContract):
    """Base of the data modules, one per record format.

    The source of the records is the first of these that is set: `records` (themselves), `path` (file, folder or Hub
    name), `mixture` (a list of {path, weight, name?} and the selection fields below, with weights as shares of tokens),
    `tasks` (of reasoning_gym, see procedural.Problems, with task_problems, task_seed and task_system), `world` (the
    fields of the built-in world).
    subset, split, held_out_split, files: which part of a path; columns: what its columns are called here; see
    dataset_folder.Selection. root: a folder whose sub-folders, named like the mixture's parts, are local copies that
    are read instead of their paths.
    batch_size counts what the subclass defines, per process. val_fraction: share of prompts (documents) held out.
    train_part: [low, high], shares from 0 to 1 of all training prompts by a hash: only these are trained on. [0, 0.5]
    and [0.5, 1] share no prompt, so that one reward model can judge a policy that was trained against another.
    on_malformed: "error" stops at a bad record, "skip" leaves it out and reports how many. num_workers: processes that
    make batches in advance; 0 makes them in the training process. The task sets tokenizer, context (tokens of the
    longest sequence), cache_dir and seed.

    After setup: `counts` (records, malformed, truncated, cut, dropped, tokens, and unread_f for a field f of messages
    that is not read) and `shares` (name -> Share of the mixture).
    """

    normalize: ClassVar[Any]  # a function of components.data.records.formats: a raw value → a Record
    features: ClassVar[dict[str, pa.DataType]]  # columns that `tokenize` returns
    read_columns: ClassVar[tuple[str, ...] | None] = None  # of tables, that `normalize` reads; None: possibly all
    train_examples: Examples
    val_examples: Examples
    explained: ClassVar[dict[str, str]] = {}  # more counts to warn about: what happened to the records

    def __init__(
        self,
        *,
        tokenizer: Tokenizer | None,
        context: int,
        cache_dir: str = "logs/cache",
        seed: int = 0,
        records: Sequence[Mapping[str, Any]] | None = None,
        path: str | None = None,
        subset: str | None = None,
        split: str = "train",
        held_out_split: str | None = None,
        files: str | None = None,
        columns: dict[str, str] | None = None,
        mixture: list[dict[str, Any]] | None = None,
        root: str | None = None,
        tasks: list[Any] | None = None,
        task_problems: Count = 2000,
        task_seed: NonNegativeInt = 0,
        task_system: str | None = None,
        world: dict[str, Any] | None = None,
        batch_size: int = 32,
        val_fraction: float = 0.05,
        train_part: list[float] | None = None,
        on_malformed: OnMalformed = "error",
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if context < 2:
            raise ValueError(f"context: got {context} tokens, expected at least 2")
        self.tokenizer = tokenizer  # None if only the texts are needed, to train a tokenizer on
        self.context, self.cache_dir, self.seed = context, cache_dir, seed
        self.records, self.path, self.mixture, self.root, self.world = records, path, mixture, root, world
        self.problems = Problems.of(tasks, task_problems, task_seed, task_system)
        self.selection = Selection(subset, split, held_out_split, files, columns)
        self.batch_size, self.val_fraction, self.train_part = batch_size, val_fraction, train_part
        in_part(np.array([], dtype=np.int64), train_part)
        self.on_malformed, self.num_workers = on_malformed, num_workers
        self.counts: Counter[str] = Counter()
        self.shares: dict[str, Share] = {}
        self._ready = False
        self._train_loader: Any = None
        self._state: dict[str, Any] | None = None

    @abstractmethod
    def tokenize(self, record: Record, counts: Counter[str]) -> list[dict[str, Any]]:
        """The stored columns of a record's examples, none if nothing is left to train on; counts what is cut."""

    def examples_of(self, record: Record, counts: Counter[str]) -> list[dict[str, Any]]:
        """What `tokenize` returns, unless a setting leaves the record out; counts the records that make no example."""
        examples = self.tokenize(record, counts)
        counts["dropped"] += not examples
        return examples

    @abstractmethod
    def arrange(self, tables: list[Table], train: np.ndarray, held_out: np.ndarray) -> None:
        """Makes `train_examples` and `val_examples` from (M, 2) arrays of [table, row]."""

    @abstractmethod
    def collate(self, examples: list) -> Any:
        """A batch of examples."""

    def split_by(self, record: Record) -> Any:
        """The content that decides on which side of the split a record falls: all messages before the first answer."""
        messages = record["prompt"] if "prompt" in record else record["messages"]
        return list(takewhile(lambda message: message["role"] != "assistant", messages))

    @property
    def limit(self) -> str:
        """What a record has to fit into, for the report of truncated ones."""
        return f"the context of {self.context} tokens"

    def settings(self) -> dict[str, Any]:
        """Other settings that change the stored columns; part of the cache key."""
        return {"context": self.context}

    def record_texts(self, record: Record) -> list[str]:
        """The record's texts."""
        messages = record["prompt"] if "prompt" in record else record["messages"]
        answers = record.get("completions", [])
        messages = [*messages, *({"content": one} if isinstance(one, str) else one for one in answers)]
        return [text for message in messages for text in message_texts(message)]

    @property
    def format(self) -> str:
        return self.normalize.__name__

    @property
    def origin(self) -> Origin:
        """Where the records come from, by this module's settings."""
        sizes = world_sizes(self.format, vars(self)) if self.world is not None else {}
        where = (self.path, self.selection, self.mixture, self.root, self.world)
        return Origin(self.format, *where, sizes, self.read_columns, self.problems, self.records)

    def sources(self) -> list[tuple[Source, float]]:
        """The sources with their weights."""
        return self.origin.sources()

    @property
    def is_builtin(self) -> bool:
        """Whether the records are the built-in world's."""
        return self.origin.is_builtin

    def fingerprint(self) -> str:
        """sha256 of the untokenized data, in hex: file contents, world parameters, or Hub name and revision."""
        return self.origin.fingerprint()

    def texts(self) -> Iterator[str]:
        """The texts of all training records, but not of held-out ones, for training a tokenizer."""

        def each() -> Iterator[tuple[Row, Record]]:
            for source, _ in self.sources():
                yield from self.records_of(source, Counter())

        undecided, held_out = [], set()
        for row, record in each():
            key = split.key(self.split_by(record))
            if row.held_out is None:
                undecided.append(key)
            elif row.held_out:
                held_out.add(key)
        held_out |= set(split.validation_keys(np.array(undecided, dtype=np.int64), self.val_fraction).tolist())
        for row, record in each():
            key = split.key(self.split_by(record))
            if not row.held_out and key not in held_out and in_part(np.array([key]), self.train_part)[0]:
                yield from self.record_texts(record)

    def prepare_data(self) -> None:
        """Tokenizes the sources that are not in the cache."""
        for source, _ in self.sources():
            self._stored(source)

    def setup(self, stage: str | None = None) -> None:
        """Reads the tokenized records, splits and mixes them."""
        if self._ready:
            return
        sources, weights = zip(*self.sources(), strict=True)
        stored_tables = [self._stored(source) for source in sources]
        tables = [table for table, _ in stored_tables]
        self.counts = sum((counts for _, counts in stored_tables), Counter())
        held_out = _held_out(tables, self.val_fraction)
        if self.val_fraction and not any(mask.any() for mask in held_out):
            self._warn_nothing_is_held_out(tables)
        keys = [table.numbers("key") for table in tables]
        known = np.concatenate([key[mask] for key, mask in zip(keys, held_out, strict=True)])
        new = [~np.isin(key, known) for key in keys]  # a prompt can be in both files of a data set, or in two sources
        if repeated := sum(int((~mask & ~others).sum()) for mask, others in zip(held_out, new, strict=True)):
            self.counts["held_out_too"] = repeated
        rows = [np.flatnonzero(mask & in_part(key, self.train_part)) for mask, key in zip(new, keys, strict=True)]
        lengths = [table.numbers("tokens")[r] for table, r in zip(tables, rows, strict=True)]
        if not sum(len(r) for r in rows):
            wider = "" if self.train_part is None else ", or widen data.train_part"
            held = f"; {repeated} are about prompts, or are documents, that are held out as well" if repeated else ""
            raise SourceError(
                f"{sources[0].name}: no record is left for training{held}; lower data.val_fraction{wider}"
            )
        chosen, shares = mix(lengths, list(weights), seed=self.seed)
        firsts = np.cumsum([0, *map(len, rows)])  # of each source in all rows joined
        train = np.stack([chosen[:, 0], np.concatenate(rows)[firsts[chosen[:, 0]] + chosen[:, 1]]], axis=1)
        self.shares = {source.name: share for source, share in zip(sources, shares, strict=True)}
        validation = [np.argwhere(mask[None]) + [s, 0] for s, mask in enumerate(held_out)]
        self.arrange(tables, train, np.concatenate(validation))
        self._report()
        self._ready = True

    def _warn_nothing_is_held_out(self, tables: list[Table]) -> None:
        different = len(np.unique(np.concatenate([table.numbers("key") for table in tables])))
        logger.warning(
            "%s data: nothing is held out, so there is no validation and the last step is exported: got %d different "
            "%s, expected at least %d to hold some out. Add more, or name a split to hold out: data.held_out_split=…",
            self.format,
            different,
            "documents" if self.format == "text" else "prompts",
            split.FEWEST,
        )

    def train_dataloader(self) -> Any:
        """Shuffled, resumable batches; always the same object."""
        if self._train_loader is None:
            self._train_loader = self.make_train_loader()
            if self._state:
                self._train_loader.load_state_dict(self._state)
        return self._train_loader

    def make_train_loader(self) -> Any:
        """A new training loader, which starts at the first batch."""
        loader = TrainLoader(self.train_examples, self.collate, seed=self.seed, **self._loading(self.train_examples))
        overfit = self.trainer.overfit_batches if self.trainer else 0  # type: ignore[attr-defined]
        loader.repeat = int(overfit * len(loader)) if isinstance(overfit, float) else overfit
        return loader

    def val_dataloader(self) -> Any:
        """Held-out examples in order; [] if there are fewer than processes, in which case Lightning warns and does not
        validate."""
        if len(self.val_examples) < (self.trainer.world_size if self.trainer else 1):
            return []
        return BatchLoader(self.val_examples, self.collate, **self._loading(self.val_examples))

    def state_dict(self) -> dict[str, Any]:
        """The state of the training loader; Lightning stores it in checkpoints."""
        return self._train_loader.state_dict() if self._train_loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state of the training loader, now or when it is made."""
        self._state = state_dict
        if self._train_loader is not None:
            self._train_loader.load_state_dict(state_dict)

    def _loading(self, examples: Examples) -> dict[str, Any]:
        trainer = self.trainer
        place: dict[str, Any] = {}
        if trainer:
            place = {"rank": trainer.global_rank, "world_size": trainer.world_size}
            place["pin_memory"] = trainer.strategy.root_device.type == "cuda"
        return {"batch_size": self.batch_size, "num_workers": self.num_workers, "lengths": examples.lengths, **place}

    def records_of(self, source: Source, counts: Counter[str]) -> Iterator[tuple[Row, Record]]:
        """The records of a source with the rows they come from, checked and normalized."""
        read = self.reader(type(self).normalize)
        return records(source, read, on_malformed=self.on_malformed, counts=counts)

    def reader(self, normalize: Callable[[Any], Record]) -> Callable[[Any], Record]:
        """A function that reads a row by the module's settings. normalize: of the row's format."""
        return normalize

    def _stored(self, source: Source) -> tuple[Table, Counter[str]]:
        """The tokenized records of a source, from the cache if they are there."""
        if self.tokenizer is None:
            raise ValueError("data: a tokenizer is needed. Make one with: python train.py stage=tokenizer")
        name = [
            VERSION,
            self.format,
            source.fingerprint(),
            self.tokenizer.fingerprint,
            self.on_malformed,
            self.settings(),
        ]
        columns = {**self.features, "key": pa.int64(), "held_out": pa.int8(), "tokens": pa.int32()}
        try:
            return stored(self.cache_dir, digest(name), lambda counts: self._rows(source, counts), columns)
        except LookupError as error:
            raise SourceError(f"{source.name}: {error}") from None

    def _rows(self, source: Source, counts: Counter[str]) -> Iterator[dict[str, Any]]:
        for row, record in self.records_of(source, counts):
            try:
                examples = self.examples_of(record, counts)
            except TemplateError as error:
                raise SourceError(f"{row.where}: {error}") from None
            except TokenizerError as error:
                counts["records"] -= 1
                refuse(row, error, on_malformed=self.on_malformed, counts=counts)
                continue
            counts.update(f"{UNREAD}{name}" for name in unread(row.value))
            side = BY_PROMPT if row.held_out is None else HELD_OUT if row.held_out else TRAINING
            for columns in examples:
                counts["tokens"] += columns["tokens"]
                yield {**columns, "key": split.key(self.split_by(record)), "held_out": side}

    def _report(self) -> None:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        logger.info("%s data: %s", self.format, counts)
        for name, share in self.shares.items() if len(self.shares) > 1 else ():
            logger.info(
                "mixture: %s makes up %.4f of the tokens (configured %.4f), %.2f epochs of it",
                name,
                share.realized,
                share.configured,
                share.epochs,
            )
        warnings = {name: name for name in ("malformed", "cut", "dropped")} | self.explained
        warnings["held_out_too"] = "not trained on: their prompts, or documents, are held out as well"
        warnings |= {"truncated": f"truncated to {self.limit}", "overlong": f"left out: longer than {self.limit}"}
        for name in self.counts:
            if name.startswith(UNREAD):
                warnings[name] = f"with {name.removeprefix(UNREAD)!r} in a message, which is not read"
        reasons = [name for name, what in self.explained.items() if what.startswith("dropped:") and name != "dropped"]
        if sum(self.counts[name] for name in reasons) == self.counts["dropped"]:
            del warnings["dropped"]  # the reasons say it
        records = self.counts["records"] + self.counts["malformed"]
        for name, what in warnings.items():
            if self.counts[name]:
                logger.warning("%s data: %d of %d records %s", self.format, self.counts[name], records, what)


def _held_out(tables: list[Table], fraction: float) -> list[np.ndarray]:
    """Per table, a mask of the validation rows; prompts are split over all tables together."""
    keys, sides = ([table.numbers(name) for table in tables] for name in ("key", "held_out"))
    undecided = [key[side == BY_PROMPT] for key, side in zip(keys, sides, strict=True)]
    chosen = split.validation_keys(np.concatenate(undecided), fraction)
    return [
        (side == HELD_OUT) | (np.isin(key, chosen) & (side == BY_PROMPT)) for key, side in zip(keys, sides, strict=True)
    ]
