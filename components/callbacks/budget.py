"""The cost of a run: tokens trained on, tokens sampled, floating-point operations."""

from collections import Counter
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor

from components.data.loading.token_count import real_tokens
from components.training.contract import Reporting, Spent


class Budget(Callback):
    """Totals over the whole run, all ranks and all resumptions, in `trainer.callback_metrics` when training ends:

    budget/train_tokens       real tokens of the training batches, counted again in every epoch
    budget/generated_tokens   tokens sampled in rollouts; those of validation are not counted
    budget/flops              floating-point operations: train_tokens · FLOPs per token, plus those of rollouts

    They allow methods to be compared at equal cost. FLOPs are from the model's formula, not measured; a text batch of
    PPO-ptx is counted as if the value model read it too. The module's flops_per_token() is the factor (if it is None
    there is no budget/flops), its spent() the cost of rollouts (training.contract.Reporting). The totals are logged
    every `every_n_steps` optimizer steps and saved in checkpoints.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 1:
            raise ValueError(f"Budget: expected every_n_steps of at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.totals: Counter[str] = Counter()  # whole numbers, the same on all ranks
        self._tokens: Tensor | None = None  # of this rank since the totals were last updated; stays on the device
        self._counted = Spent()  # the part of the module's spent() that the totals contain

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._step, self._counted = trainer.global_step, pl_module.spent()
        self._logged: int | None = None  # the step whose totals were logged last

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: object, batch: object, batch_idx: int
    ) -> None:
        count = real_tokens(batch)
        if count is not None:
            self._tokens = count if self._tokens is None else self._tokens + count
        if trainer.global_step == self._step:
            return  # gradients are still being accumulated
        self._step = trainer.global_step
        if self._step % self.every_n_steps == 0:
            self._update_totals(trainer, pl_module)
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._update_totals(trainer, pl_module)
        if self._logged != trainer.global_step:
            self._log(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Not in on_train_end, which a run resumed from its last step never reaches."""
        totals = self.metrics(pl_module)
        trainer.callback_metrics.update({k: torch.tensor(v, dtype=torch.float64) for k, v in totals.items()})

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._update_totals(trainer, pl_module)
        checkpoint["budget"] = dict(self.totals)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.totals, self._tokens = Counter(checkpoint.get("budget", {})), None

    def metrics(self, pl_module: Reporting) -> dict[str, float]:
        """The totals by their logged names."""
        totals = {f"budget/{name}": float(self.totals[name]) for name in ("train_tokens", "generated_tokens")}
        per_token = pl_module.flops_per_token()
        if per_token is not None:
            totals["budget/flops"] = self.totals["train_tokens"] * per_token + self.totals["rollout_flops"]
        return totals

    def _update_totals(self, trainer: Trainer, pl_module: Reporting) -> None:
        """Adds what all ranks have counted since the last update; a collective."""
        spent, before = pl_module.spent(), self._counted
        tokens = int(self._tokens) if self._tokens is not None else 0
        new = [tokens, spent.generated_tokens - before.generated_tokens, spent.flops - before.flops]
        self._tokens, self._counted = None, spent
        if trainer.world_size > 1:
            own = torch.tensor(new, dtype=torch.float64, device=trainer.strategy.root_device)
            new = trainer.strategy.reduce(own, reduce_op="sum").long().tolist()
        self.totals.update(dict(zip(("train_tokens", "generated_tokens", "rollout_flops"), new, strict=True)))

    def _log(self, trainer: Trainer, pl_module: Reporting) -> None:
        self._logged = trainer.global_step
        for logger in trainer.loggers:
            logger.log_metrics(self.metrics(pl_module), step=trainer.global_step)
