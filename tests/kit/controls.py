"""For the tests of the pipeline: PPO with one thing broken on purpose."""

import torch

from components.stages.ppo import PPO


class ShuffledScores(PPO):
    """Every response gets the score of another: a reward that carries no information."""

    def final_scores(self, score: torch.Tensor, finished: torch.Tensor) -> torch.Tensor:
        scores = super().final_scores(score, finished)
        order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(len(scores)))
        return scores[order]
