"""The order of training examples: a pure function of (seed, batch number), the same on every rank.

All ranks cut the same permutations into global batches of batch_size times world_size examples and divide each among
them, with the same number of examples and about the same number of tokens per rank. So N ranks see what one rank with N
times the batch size sees, and the contents of a batch do not depend on workers, on earlier use of random numbers, or on
whether the run was interrupted.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, Protocol

import numpy as np
from torch import Generator
from torch.utils.data import DataLoader

from components.functional.seeding import numpy_seeded


def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """(size,) the numbers 0 to size − 1 in the order of an epoch."""
    return numpy_seeded(seed, epoch).permutation(size)


def batches_per_epoch(size: int, batch_size: int, world_size: int) -> int:
    """Batches per rank, the same for each. The last can be short, but has at least one example on every rank."""
    whole, rest = divmod(size, batch_size * world_size)
    return whole + (rest >= world_size)


def batch(
    order: np.ndarray, number: int, batch_size: int, rank: int, world_size: int, lengths: np.ndarray | None = None
) -> list[int]:
    """This rank's examples of batch `number` of an epoch.

    lengths: of all examples, if they differ. The longest are then dealt first, in alternating directions, so that ranks
    have about the same number of tokens and rarely wait for each other.
    """
    size = batch_size * world_size
    chosen = order[number * size : (number + 1) * size]
    if lengths is None or world_size == 1:
        return chosen[rank::world_size].tolist()
    rounds, column = np.divmod(np.arange(len(chosen)), world_size)
    dealt_to = np.where(rounds % 2, world_size - 1 - column, column)
    longest_first = np.argsort(-lengths[chosen], kind="stable")
    return chosen[np.sort(longest_first[dealt_to == rank])].tolist()


class Examples(Protocol):
    """Examples of a data module. lengths (len(self),): tokens of each; None if all are equally long."""

    @property
    def lengths(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class BatchLoader:
    """Batches of examples in order, one pass per iteration; for validation.

    Every example is in exactly one batch, and every rank has the same number of batches: if fewer examples than ranks
    are left over, they go into the last batches, one each.

    examples: anything with len() and [i]; collate: list of examples -> batch; lengths: of the examples in tokens, if
    they differ; pin_memory: whether to put batches where a GPU can copy them from in the background. Raises ValueError
    if there are fewer examples than ranks.
    """

    def __init__(
        self,
        examples: Sequence | Sized,
        collate: Callable[[list], Any],
        *,
        batch_size: int,
        lengths: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
        if len(examples) < world_size:
            raise ValueError(f"{len(examples)} examples for {world_size} processes; use fewer devices")
        self.examples, self.collate, self.lengths = examples, collate, lengths
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.num_workers, self.pin_memory = num_workers, pin_memory

    def __len__(self) -> int:
        return batches_per_epoch(len(self.examples), self.batch_size, self.world_size)

    def __iter__(self) -> Iterator[Any]:
        order = np.arange(len(self.examples))
        batches = [self._batch(order, number) for number in range(len(self))]
        left_over = order[len(batches) * self.batch_size * self.world_size :]
        batches[-1] += left_over[self.rank :: self.world_size].tolist()
        yield from self._load(batches)

    def _batch(self, order: np.ndarray, number: int) -> list[int]:
        return batch(order, number, self.batch_size, self.rank, self.world_size, self.lengths)

    def _load(self, batches: Iterable[list[int]]) -> Iterator[Any]:
        yield from DataLoader(
            self.examples,  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            generator=Generator(),  # otherwise making an iterator would use the global one
        )


class TrainLoader(BatchLoader):
    """The endless stream of shuffled batches; each pass of `iter` continues where the last one stopped.

    One pass is len() batches, but can end early (`limit_train_batches`), in which case the next yields the rest. The
    state is the number of batches yielded, so batches that workers have made in advance do not count. repeat: how many
    batches to repeat forever (`overfit_batches`); 0 is all of them.
    """

    def __init__(
        self, examples: Any, collate: Callable[[list], Any], *, seed: int, repeat: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(examples, collate, **kwargs)
        self.seed, self.repeat = seed, repeat
        self._epoch, self._order = -1, np.arange(0)  # the current permutation
        self.given = 0  # batches yielded since the start of training

    def __iter__(self) -> Iterator[Any]:
        first = self.given
        for loaded in self._load(self.indices(number) for number in range(first, first + len(self))):
            self.given += 1
            yield loaded

    def indices(self, number: int) -> list[int]:
        """This rank's examples of batch `number`, counted from the start of training."""
        epoch, position = divmod(number % self.repeat if self.repeat else number, len(self))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(len(self.examples), self.seed, epoch)
        return self._batch(self._order, position)

    def state_dict(self) -> dict[str, int]:
        """Epoch, position in it, and their units: the number of examples, and of those per batch over all ranks."""
        epoch, position = divmod(self.given, len(self))
        return {"epoch": epoch, "position": position, **self._counted_in()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resumes from a state, also with another number of processes if their global batch has the same size.

        Raises ValueError if the global batch size or the data have changed, because the order would change too.
        """
        now = self._counted_in()
        if any(state[name] != count for name, count in now.items()):
            fits = f" (data.batch_size={size})" if (size := self._fitting(state)) else ""
            raise ValueError(
                f"resume: the checkpoint was made with {state['batch']} of {state['examples']} examples in a global "
                f"batch, but now it has {now['batch']} of {now['examples']}. Restore the data and the product of "
                f"data.batch_size{fits} and the number of processes, or start over with resume=never"
            )
        self.given = state["epoch"] * len(self) + state["position"]

    def _counted_in(self) -> dict[str, int]:
        return {"examples": len(self.examples), "batch": self.batch_size * self.world_size}

    def _fitting(self, state: dict[str, int]) -> int:
        """The batch size per process that gives the same global batch size, 0 if there is none."""
        size, rest = divmod(state["batch"], self.world_size)
        return 0 if rest else size
