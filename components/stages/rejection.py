"""Rejection sampling: fine-tuning on the best of several responses, by the reward model's choice."""

from typing import Any

import torch
from torch import Tensor

from components.functional.losses import causal_lm
from components.functional.masking import masked_mean
from components.generation.responses import response_logprobs
from components.generation.rollout import Experience
from components.stages.onpolicy import OnPolicy
from components.training.contract import Chart, LossOutput, Term


class Rejection(OnPolicy):
    """Best-of-n distillation: draws samples_per_prompt responses, keeps the best of each prompt, imitates those.

    Each rollout draws from the policy as it is by then (Touvron et al. 2023, Llama 2, section 3.2.3; Dong et al. 2023,
    RAFT). No KL term: only few, small steps keep the policy near its reference; rollout/kl tells how near.

    Metrics beside those of OnPolicy:
    rollout/best_score     mean score of the responses kept
    train/loss             mean −log p of their tokens, nats; falls towards the entropy of the best
    train/entropy          of the policy being updated, nats per token
    """

    charts = (
        Chart("score, of all and of those kept", ("rollout/score", "rollout/best_score")),
        *OnPolicy.charts,
        Chart("groups without a difference", ("rollout/equal_groups",), 0.0, 0.5),
        Chart("loss on those kept, nats per token", ("train/loss",)),
        Chart("gradient norm", ("train/grad_norm",)),
    )

    def __init__(self, **shared: Any) -> None:
        if "beta" in shared:
            raise ValueError(
                f"stage.beta: rejection sampling has no KL term, got {shared['beta']}; fewer trainer.max_steps or a "
                "lower stage.optimizer.lr keep the policy near its reference"
            )
        super().__init__(beta=0.0, **shared)
        if self.samples_per_prompt < 2:
            raise ValueError(
                f"stage.samples_per_prompt: got {self.samples_per_prompt}, expected at least 2 to choose the best from"
            )

    def advantages(self, known: Experience) -> Experience:
        best = known["rewards"][self.best(known["rewards"])]
        total, count = self.all_reduced(torch.stack([best.sum(), best.new_tensor(len(best))]))
        self.log_now({"rollout/best_score": float(total / count)})
        return {"rewards": known["rewards"], "finished": known["finished"]}

    def best(self, rewards: Tensor) -> Tensor:
        """(prompts,) the number of each prompt's best response; the first of equals."""
        groups = rewards.view(-1, self.samples_per_prompt)
        firsts = groups.argmax(1)
        return firsts + firsts.new_tensor(range(len(groups))) * self.samples_per_prompt

    def split(self, prompts: list[list[int]], known: Experience, rollout: int) -> list[Experience]:
        if not self._checked:  # in the rows that were assessed: in bf16 those of the best alone round otherwise
            self.self_check(known, super().split(prompts, known, rollout)[0], rollout)
        kept = self.best(known["rewards"])
        chosen = {name: tensor[kept.to(tensor.device)] for name, tensor in known.items()}
        return super().split([prompts[i] for i in kept.tolist()], chosen, rollout)

    def compute_loss(self, batch: Experience) -> LossOutput:
        mask = batch["mask"]
        logprobs, entropies = response_logprobs(self.policy, batch, temperature=self.sampling.temperature)
        term = Term(causal_lm(logprobs, mask), mask.sum())
        return LossOutput((term,), {"entropy": masked_mean(entropies, mask)})
