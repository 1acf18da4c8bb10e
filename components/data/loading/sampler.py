"""The order of training examples: a pure function of (seed, batch number), the same on every rank.

All ranks cut the same permutations into global batches of batch_size times world_size examples and deal each out
among them, equally many examples to a rank and about equally many tokens. So N ranks see what one rank with N times
the batch size sees, and what a batch holds does not depend on workers, on what drew random numbers before, or on
whether the run was interrupted.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any

import numpy as np
from torch import Generator
from torch.utils.data import DataLoader


def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """(size,) numbers 0..size-1 in the order of an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def batches_per_epoch(size: int, batch_size: int, world_size: int) -> int:
    """Batches of one rank, as many for each. The last may be short, but no rank goes without an example."""
    whole, rest = divmod(size, batch_size * world_size)
    return whole + (rest >= world_size)


def batch(
    order: np.ndarray, number: int, batch_size: int, rank: int, world_size: int, lengths: np.ndarray | None = None
) -> list[int]:
    """This rank's examples of batch `number` of an epoch.

    lengths: of all examples, where they differ. The longest ones are then dealt first, and every round of dealing in
    the opposite direction of the one before, so that ranks have about as many tokens and seldom wait for each other.
    """
    size = batch_size * world_size
    chosen = order[number * size : (number + 1) * size]
    if lengths is None or world_size == 1:
        return chosen[rank::world_size].tolist()
    rounds, place = np.divmod(np.arange(len(chosen)), world_size)
    dealt_to = np.where(rounds % 2, world_size - 1 - place, place)
    longest_first = np.argsort(-lengths[chosen], kind="stable")
    return chosen[np.sort(longest_first[dealt_to == rank])].tolist()


class BatchLoader:
    """Batches of examples, in order, one pass each time it is iterated; for validation.

    Every example is in one of them, and every rank has as many: the few left over when there are fewer than ranks
    go into the last batches, one each.

    examples: anything with len() and [i], and `lengths` (an array of their tokens) where they differ; collate: list of
    examples -> batch. Raises ValueError when there are fewer examples than ranks.
    """

    def __init__(
        self,
        examples: Sequence | Sized,
        collate: Callable[[list], Any],
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
        if len(examples) < world_size:
            raise ValueError(f"{len(examples)} examples for {world_size} processes; use fewer devices")
        self.examples, self.collate = examples, collate
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.num_workers = num_workers

    def __len__(self) -> int:
        return batches_per_epoch(len(self.examples), self.batch_size, self.world_size)

    def __iter__(self) -> Iterator[Any]:
        order = np.arange(len(self.examples))
        batches = [self._batch(order, number) for number in range(len(self))]
        left_over = order[len(batches) * self.batch_size * self.world_size :]
        batches[-1] += left_over[self.rank :: self.world_size].tolist()
        yield from self._load(batches)

    def _batch(self, order: np.ndarray, number: int) -> list[int]:
        lengths = getattr(self.examples, "lengths", None)
        return batch(order, number, self.batch_size, self.rank, self.world_size, lengths)

    def _load(self, batches: Iterable[list[int]]) -> Iterator[Any]:
        yield from DataLoader(
            self.examples,  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            generator=Generator(),  # its own: otherwise making an iterator would draw from the global one
        )


class TrainLoader(BatchLoader):
    """The endless stream of shuffled batches; each pass of `iter` goes on where the last one stopped.

    One pass is len() batches, but may be left early (`limit_train_batches`): the next takes up the rest. The
    state is the number of batches handed out, so nothing that workers have made in advance counts. repeat:
    how many batches to repeat for ever (`overfit_batches`); 0 is all of them.
    """

    def __init__(
        self, examples: Any, collate: Callable[[list], Any], *, seed: int, repeat: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(examples, collate, **kwargs)
        self.seed, self.repeat = seed, repeat
        self._epoch, self._order = -1, np.arange(0)  # the permutation at hand
        self.given = 0  # batches handed out since the start of training

    def __iter__(self) -> Iterator[Any]:
        first = self.given
        for one in self._load(self.indices(number) for number in range(first, first + len(self))):
            self.given += 1
            yield one

    def indices(self, number: int) -> list[int]:
        """This rank's examples of batch `number`, counted from the start of training."""
        epoch, position = divmod(number % self.repeat if self.repeat else number, len(self))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(len(self.examples), self.seed, epoch)
        return self._batch(self._order, position)

    def state_dict(self) -> dict[str, int]:
        """Epoch, position in it, and what they are counted in: batches of so many examples over all ranks."""
        epoch, position = divmod(self.given, len(self))
        return {"epoch": epoch, "position": position, **self._counted_in()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from there, also with another number of processes whose batches together hold as much.

        Raises ValueError where the batches or the data are others now: so would the order be.
        """
        now = self._counted_in()
        if any(state[name] != count for name, count in now.items()):
            fits = f" (data.batch_size={size})" if (size := self._fitting(state)) else ""
            raise ValueError(
                f"resume: the checkpoint was made with {state['batch']} of {state['examples']} examples in a batch, "
                f"all processes together, now it is {now['batch']} of {now['examples']}. Restore the data and the "
                f"product of data.batch_size{fits} and the number of processes, or start anew with resume=never"
            )
        self.given = state["epoch"] * len(self) + state["position"]

    def _counted_in(self) -> dict[str, int]:
        return {"examples": len(self.examples), "batch": self.batch_size * self.world_size}

    def _fitting(self, state: dict[str, int]) -> int:
        """The batch size that makes as large batches of these processes, 0 if none does."""
        size, rest = divmod(state["batch"], self.world_size)
        return 0 if rest else size
