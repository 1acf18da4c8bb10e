"""Rejection sampling: fine-tuning on the best of several responses, chosen by the reward model."""

from typing import Any

import torch
from torch import Tensor

from components.functional.losses import causal_lm
from components.functional.masking import masked_mean
from components.generation.responses import response_logprobs
from components.generation.rollout import Experience, Minibatch
from components.stages.onpolicy import OnPolicy
from components.training.contract import Chart, LossOutput, Term


class Rejection(OnPolicy):
    """Best-of-n distillation: samples samples_per_prompt responses, keeps the best to each prompt, imitates those.

    Each rollout is sampled from the current policy (Touvron et al. 2023, Llama 2, section 3.2.3; Dong et al. 2023,
    RAFT). There is no KL term: only few, small steps keep the policy close to its reference; see rollout/kl.

    Metrics in addition to those of OnPolicy:
    rollout/best_score     mean score of the kept responses
    train/loss             mean −log p of their tokens, nats; falls toward the entropy of the best responses
    train/entropy          of the policy being updated, nats per token
    """

    charts = (
        Chart("score of all and of kept responses", ("rollout/score", "rollout/best_score")),
        *OnPolicy.charts,
        Chart("groups with equal scores", ("rollout/equal_groups",), 0.0, 0.5),
        Chart("loss on kept responses, nats per token", ("train/loss",)),
        Chart("gradient norm", ("train/grad_norm",)),
    )

    def __init__(self, **shared: Any) -> None:
        if "beta" in shared:
            raise ValueError(
                f"stage.beta: rejection sampling has no KL term, got {shared['beta']}; to keep the policy close to its "
                "reference, lower trainer.max_steps or stage.optimizer.lr"
            )
        super().__init__(beta=0.0, **shared)
        if self.samples_per_prompt < 2:
            raise ValueError(
                f"stage.samples_per_prompt: got {self.samples_per_prompt}, expected at least 2 to choose the best from"
            )

    def advantages(self, experience: Experience) -> Experience:
        best = experience.rewards[self.best(experience.rewards)]
        total, count = self.all_reduced(torch.stack([best.sum(), best.new_full((), len(best))]))
        self.log_now({"rollout/best_score": float(total / count)})
        return experience

    def best(self, rewards: Tensor) -> Tensor:
        """(prompts,) int64: index of the best response to each prompt; the first one in a tie."""
        groups = rewards.view(-1, self.samples_per_prompt)
        firsts = groups.argmax(1)
        return firsts + torch.arange(len(groups), device=firsts.device) * self.samples_per_prompt

    def split(self, prompts: list[list[int]], experience: Experience, rollout: int) -> list[Minibatch]:
        if not self._checked:  # on the rows that were assessed: in bf16, rows of the best alone round differently
            self.self_check(experience, super().split(prompts, experience, rollout)[0], rollout)
        kept = self.best(experience.rewards)
        return super().split([prompts[i] for i in kept.tolist()], experience.select(kept), rollout)

    def compute_loss(self, batch: Minibatch) -> LossOutput:
        mask = batch.mask
        logprobs, entropies = response_logprobs(self.policy, batch.packed, temperature=self.sampling.temperature)
        term = Term(causal_lm(logprobs, mask), mask.sum())
        return LossOutput((term,), {"entropy": masked_mean(entropies, mask)})
