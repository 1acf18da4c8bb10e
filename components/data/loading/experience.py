"""The training loader of on-policy stages: asks the stage for experience and hands it out in minibatches."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed
from lightning import Trainer
from torch import Tensor

from components.data.loading.sampler import TrainLoader, permutation

Minibatch = dict[str, Any]


class ExperienceLoader:
    """Minibatches of experience that the trainer's module collects on prompts.

    Rollout n is `module.collect(prompts, n)`, a list of minibatches (dicts of tensors), which are then handed
    out one by one. Before each, `module.rollout_is_spent` is asked: if it is true the rest is dropped and the
    next rollout begins. The prompts of rollout n are a slice, one part a rank, of permutations by (seed,
    epoch) that follow each other, so they depend on n alone. With `pretraining`, a loader of text, each
    minibatch gets its next batch under the key "pretraining".

    It has a length, the trainer's number of micro-batches, or Lightning would fetch one minibatch ahead, and
    every rollout would come from the policy before the last update.
    """

    def __init__(
        self,
        prompts: Sequence[dict[str, Any]],
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
        self.rollout = 0  # rollouts begun
        self.position = 0  # minibatches of the latest that were handed out
        self.pending: list[Minibatch] = []
        self._text = self._endless_text()

    def __len__(self) -> int:
        """Micro-batches of the whole training; ValueError without trainer.max_steps."""
        if self.trainer.max_steps < 1:
            raise ValueError(
                f"trainer.max_steps: got {self.trainer.max_steps}; on-policy stages have no epochs, so set "
                "the number of updates, for instance trainer.max_steps=800"
            )
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def __iter__(self) -> Iterator[Minibatch]:
        every = 1 if self.pretraining is None else self.trainer.accumulate_grad_batches
        for _ in range(len(self) // every):
            yield from self._step(every)

    def _step(self, count: int) -> Iterator[Minibatch]:
        """The minibatches of an optimizer step, taken together where text is mixed in: no update lies between them.

        step_weights (2,): response tokens and counted text tokens of all of them. A loss with a term on each needs
        both, to be the sum of two means over the whole step.
        """
        parts = [self._next() for _ in range(count)]
        if count > 1:
            tokens = [torch.stack([part["mask"].sum().cpu(), part["pretraining"].mask.sum()]) for part in parts]
            parts = [{**part, "step_weights": torch.stack(tokens).sum(0)} for part in parts]
        yield from parts

    def prompts_of(self, rollout: int) -> list[dict[str, Any]]:
        """This rank's prompts of a rollout."""
        world_size = self.trainer.world_size
        first = rollout * self.prompts_per_rollout * world_size + self.trainer.global_rank
        places = [divmod(first + i * world_size, len(self.prompts)) for i in range(self.prompts_per_rollout)]
        orders = {epoch: permutation(len(self.prompts), self.seed, epoch) for epoch, _ in places}
        return [self.prompts[int(orders[epoch][place])] for epoch, place in places]

    def state_dict(self) -> dict[str, Any]:
        """Rollout, position, every rank's minibatches still to come; to be called on all ranks at once."""
        pending = [_on_cpu(minibatch) for minibatch in self.pending] if not self._spent() else []
        everyones = [pending]
        if self.trainer.world_size > 1:
            everyones = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(everyones, pending)
        state = {"rollout": self.rollout, "position": self.position, "pending": everyones}
        return state if self.pretraining is None else {**state, "pretraining": self.pretraining.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there; ValueError in the middle of a rollout that another number of processes made."""
        ranks = len(state["pending"])
        if ranks != self.trainer.world_size and any(state["pending"]):
            raise ValueError(
                f"resume: the checkpoint lies within a rollout of {ranks} processes, now there are "
                f"{self.trainer.world_size}. Use as many devices, or start anew: resume=never"
            )
        self.rollout, self.position = state["rollout"], state["position"]
        self.pending = list(state["pending"][self.trainer.global_rank]) if any(state["pending"]) else []
        if self.pretraining is not None:
            self.pretraining.load_state_dict(state["pretraining"])
            self._text = self._endless_text()

    def _next(self) -> Minibatch:
        if not self.pending or self._spent():
            module: Any = self.trainer.lightning_module
            self.pending = list(module.collect(self.prompts_of(self.rollout), self.rollout))
            if not self.pending:
                raise ValueError(f"collect: rollout {self.rollout} gave no minibatch, expected at least one")
            self.rollout += 1
            self.position = 0
        minibatch = self.pending.pop(0)
        self.position += 1
        return minibatch if self.pretraining is None else {**minibatch, "pretraining": next(self._text)}

    def _spent(self) -> bool:
        return bool(getattr(self.trainer.lightning_module, "rollout_is_spent", False))

    def _endless_text(self) -> Iterator[Any]:
        while self.pretraining is not None:
            yield from self.pretraining


def _on_cpu(minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of their own, so that a checkpoint does not hold the storage they are views of."""
    return {name: tensor.detach().cpu().clone() for name, tensor in minibatch.items()}
