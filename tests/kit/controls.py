"""For the tests of the pipeline: PPO with one thing broken on purpose, and an end to steps that nothing comes of."""

import torch
from lightning import Callback, LightningModule, Trainer

from components.stages.ppo import PPO


class EndsAfterValidation(Callback):
    """Ends training after its first validation: with export=best the weights of a longer one that had its best then.

    The schedule is still that of all steps."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop |= not trainer.sanity_checking


class ShuffledScores(PPO):
    """Every response gets the score of another: a reward that carries no information."""

    def final_scores(self, score: torch.Tensor, finished: torch.Tensor) -> torch.Tensor:
        scores = super().final_scores(score, finished)
        order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(len(scores)))
        return scores[order]
