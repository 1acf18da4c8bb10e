"""The training loader of on-policy stages: has the stage collect experience and yields it in minibatches."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

import torch
import torch.distributed
from lightning import Trainer
from torch import Tensor

from components.data.batches import WithText
from components.data.loading.sampler import Examples, TrainLoader, permutation


class Minibatch(Protocol):
    """What the loader asks of a minibatch. mask: bool, True on response tokens. tensors: all of it, by name."""

    @property
    def mask(self) -> Tensor: ...

    def tensors(self) -> dict[str, Tensor]: ...


class Collector(Protocol):
    """What the loader asks of the trainer's module. collect: the minibatches of a rollout on prompts; further(n) takes
    n more prompts. minibatch_of: the minibatch that has these tensors."""

    rollout_is_spent: bool

    def collect(
        self, prompts: list[dict[str, Any]], rollout: int, further: Callable[[int], list[dict[str, Any]]]
    ) -> Sequence[Minibatch]: ...

    def minibatch_of(self, tensors: dict[str, Tensor]) -> Minibatch: ...


class ExperienceLoader:
    """Minibatches of experience that the trainer's module collects on prompts.

    Rollout n is `module.collect(prompts, n, further)`, a list of minibatches, which are yielded one by one. If
    `module.rollout_is_spent` is true before one of them, the rest is dropped and the next rollout starts. The prompts
    are taken in turn, one part per rank, from consecutive permutations by (seed, epoch): those of rollout n depend only
    on n and on how many `further` ones were taken before. With `pretraining`, a loader of text, each minibatch comes
    WithText, its next batch.

    It has a length, the trainer's number of micro-batches, because Lightning would otherwise fetch one minibatch ahead,
    and every rollout would come from the policy before the last update.
    """

    def __init__(
        self,
        prompts: Examples,
        *,
        prompts_per_rollout: int,
        seed: int,
        trainer: Trainer,
        pretraining: TrainLoader | None = None,
    ) -> None:
        if prompts_per_rollout < 1:
            raise ValueError(f"prompts_per_rollout: got {prompts_per_rollout}, expected at least 1")
        self.prompts, self.prompts_per_rollout, self.seed = prompts, prompts_per_rollout, seed
        self.trainer, self.pretraining = trainer, pretraining
        self.rollout = 0  # rollouts started
        self.further = 0  # prompts taken by all ranks beyond prompts_per_rollout of each rollout
        self.position = 0  # minibatches yielded from the latest one
        self.pending: list[Minibatch] = []
        self._text = self._endless_text()

    def __len__(self) -> int:
        """Micro-batches in the whole training run. Raises ValueError if trainer.max_steps is not set."""
        if self.trainer.max_steps < 1:
            raise ValueError(
                f"trainer.max_steps: got {self.trainer.max_steps}; on-policy stages have no epochs, so set "
                "the number of updates, for example trainer.max_steps=800"
            )
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def __iter__(self) -> Iterator[Minibatch | WithText]:
        if self.pretraining is None:
            for _ in range(len(self)):
                yield self._next()
        else:
            for _ in range(len(self) // self.trainer.accumulate_grad_batches):
                yield from self._step_with_text(self.trainer.accumulate_grad_batches)

    def _step_with_text(self, count: int) -> list[WithText]:
        """The minibatches of an optimizer step, taken together, since no update separates them.

        A loss with a term for responses and one for text needs the tokens of both, to be the sum of two means over the
        whole step.
        """
        parts = [WithText(self._next(), next(self._text)) for _ in range(count)]
        if count > 1:
            tokens = [torch.stack([part.minibatch.mask.sum().cpu(), part.text.mask.sum()]) for part in parts]
            parts = [part._replace(step_weights=torch.stack(tokens).sum(0)) for part in parts]
        return parts

    def prompts_of(self, rollout: int) -> list[dict[str, Any]]:
        """This rank's prompts of a rollout."""
        return self._taken(rollout, self.prompts_per_rollout)

    def take_further(self, count: int) -> list[dict[str, Any]]:
        """This rank's part of the next prompts, which the coming rollouts will not have. Called within `collect`, on
        all ranks with the same count."""
        prompts = self._taken(self.rollout + 1, count)
        self.further += count * self.trainer.world_size
        return prompts

    def _taken(self, rollout: int, count: int) -> list[dict[str, Any]]:
        """This rank's part of the prompts from the first of a rollout on."""
        world_size = self.trainer.world_size
        first = rollout * self.prompts_per_rollout * world_size + self.further + self.trainer.global_rank
        positions = [divmod(first + i * world_size, len(self.prompts)) for i in range(count)]
        orders = {epoch: permutation(len(self.prompts), self.seed, epoch) for epoch, _ in positions}
        return [self.prompts[int(orders[epoch][position])] for epoch, position in positions]

    def state_dict(self) -> dict[str, Any]:
        """Rollout, position and every rank's remaining minibatches; must be called on all ranks at once."""
        pending = [_on_cpu(minibatch.tensors()) for minibatch in self.pending] if not self._spent() else []
        by_rank = [pending]
        if self.trainer.world_size > 1:
            by_rank = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(by_rank, pending)
        state = {"rollout": self.rollout, "further": self.further, "position": self.position, "pending": by_rank}
        state["prompts"] = self._together()
        return state if self.pretraining is None else {**state, "pretraining": self.pretraining.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a state. Raises ValueError if the processes together take other numbers of prompts, and within
        a rollout that a different number of processes made."""
        ranks, together = len(state["pending"]), self._together()
        if state.get("prompts", together) != together:  # a checkpoint from before this was noted has none
            raise ValueError(
                f"resume: the checkpoint was made with {state['prompts']} prompts in a rollout of all processes, but "
                f"now there are {together}. Restore the product of data.prompts_per_rollout and the number of "
                "processes, or start over with resume=never"
            )
        if ranks != self.trainer.world_size and any(state["pending"]):
            raise ValueError(
                f"resume: the checkpoint is in the middle of a rollout of {ranks} processes, but there are "
                f"{self.trainer.world_size} now. Use the same number of devices, or start over with resume=never"
            )
        self.rollout, self.position = state["rollout"], state["position"]
        self.further = state.get("further", 0)  # of a checkpoint from before there were any
        pending = state["pending"][self.trainer.global_rank] if any(state["pending"]) else []
        self.pending = [self.collector.minibatch_of(tensors) for tensors in pending]
        if self.pretraining is not None:
            self.pretraining.load_state_dict(state["pretraining"])
            self._text = self._endless_text()

    def _together(self) -> int:
        """Prompts in a rollout of all processes, without further ones."""
        return self.prompts_per_rollout * self.trainer.world_size

    def _next(self) -> Minibatch:
        if not self.pending or self._spent():
            self.pending = list(self.collector.collect(self.prompts_of(self.rollout), self.rollout, self.take_further))
            if not self.pending:
                raise ValueError(f"collect: rollout {self.rollout} has no minibatches, expected at least one")
            self.rollout += 1
            self.position = 0
        minibatch = self.pending.pop(0)
        self.position += 1
        return minibatch

    def _spent(self) -> bool:
        return self.collector.rollout_is_spent

    @property
    def collector(self) -> Collector:
        return cast(Collector, self.trainer.lightning_module)

    def _endless_text(self) -> Iterator[Any]:
        while self.pretraining is not None:
            yield from self.pretraining


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors, so that a checkpoint does not contain the storage they are views of."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
