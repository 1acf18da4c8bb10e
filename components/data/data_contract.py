"""What stages, callbacks and tasks read of a data module."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from lightning import LightningDataModule, Trainer

from components.data.batches import PreferenceBatch


class DataContract(LightningDataModule):
    """Base of data modules, with defaults for what a module does not have.

    tokenizer: None if texts are only read. context: tokens of the longest sequence. batch_size: per process, in the
    units of train_examples. train_examples, val_examples: after setup, anything with len() and [i].
    prompts_per_rollout, max_prompt: of prompts that a stage responds to: how many per rollout and process, and the most
    tokens of one; None for other data. pretraining: data whose text comes with every minibatch (PPO-ptx).
    num_demonstrations: the most demonstrations whose scores should average zero; 0 without any.
    """

    tokenizer: Any = None
    context: int = 0
    batch_size: int = 0
    train_examples: Any = ()
    val_examples: Any = ()
    prompts_per_rollout: int | None = None
    max_prompt: int | None = None
    pretraining: "DataContract | None" = None
    num_demonstrations: int = 0

    @property
    def format(self) -> str:
        """The format of the records: text, chat, preference, unpaired or prompts."""
        return ""

    def largest_batch(self) -> int:
        """The most tokens in a batch of this process: of its longest examples, or of rows of the whole context."""
        lengths = getattr(self.train_examples, "lengths", None)
        if lengths is None:
            return self.batch_size * self.context
        return int(np.sort(lengths)[-self.batch_size :].sum()) if self.batch_size else 0

    def mean_batch(self) -> float | None:
        """Tokens of an average batch of this process; None if it is not known beforehand how long examples are."""
        lengths = getattr(self.train_examples, "lengths", None)
        return None if lengths is None or not len(lengths) else self.batch_size * float(np.mean(lengths))

    def largest_prompts(self, number: int) -> int:
        """The most tokens that this many training prompts have together."""
        return number * (self.max_prompt or 0)

    @property
    def balance(self) -> tuple[int, int] | None:
        """How many training records are labeled desirable, and how many undesirable; None without labels."""
        return None

    def judge_responses(
        self, prompts: Sequence[dict[str, Any]], responses: Sequence[list[int]], finished: Sequence[bool]
    ) -> dict[str, float]:
        """Means of the true quality of responses (ids), one per prompt, by name; {} if it is unknown."""
        return {}

    def demonstration_batches(self) -> Iterable[PreferenceBatch]:
        """The demonstrations, each as the one answer to its prompt."""
        return []


NO_DATA = DataContract()  # of a trainer that has loaders only


def data_of(trainer: Trainer) -> DataContract:
    """The trainer's data module. Raises ValueError for a module that does not say what is read of it."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    if data is None:
        return NO_DATA
    if not isinstance(data, DataContract):
        raise ValueError(
            f"data: got {type(data).__name__}, expected one of components.data, or a module that inherits "
            "components.data.data_contract.DataContract"
        )
    return data
