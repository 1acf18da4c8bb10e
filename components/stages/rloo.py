"""RLOO: REINFORCE with the mean of the other responses to a prompt as its baseline."""

from typing import Any

import torch

from components.functional.advantages import group_relative
from components.functional.losses import clipped_surrogate
from components.functional.masking import masked_mean, zero_outside
from components.generation.responses import approximate_kl, response_logprobs
from components.generation.rollout import Experience, Minibatch
from components.stages.onpolicy import OnPolicy
from components.training.contract import Chart, LossOutput, Term


class RLOO(OnPolicy):
    """REINFORCE leave-one-out (Ahmadian et al. 2024): a whole response is one action, with reward score − beta · KL.

    Repeated updates on a rollout are weighted by the clipped ratio of whole responses; at ratio 1 the gradient is
    REINFORCE's. clip: the band of that ratio.

    Metrics in addition to those of OnPolicy:
    train/clip_fraction    share of responses whose ratio is clipped; healthy ≤ 0.3, since ratios of responses move more
    train/approx_kl        KL of the old to the new policy by k3, nats per token; healthy ≤ 0.05
    train/ratio_max        largest ratio of new to old probability of a response
    train/entropy          of the policy being updated, nats per token
    """

    charts = (
        *OnPolicy.charts,
        Chart("groups with equal scores", ("rollout/equal_groups",), 0.0, 0.5),
        Chart("share of updates clipped", ("train/clip_fraction",), 0.0, 0.3),
        Chart("KL of an update, nats per token", ("train/approx_kl",), 0.0, 0.05),
        Chart("gradient norm", ("train/grad_norm",)),
    )

    def __init__(self, clip: float = 0.2, **shared: Any) -> None:
        super().__init__(**shared)
        if self.samples_per_prompt < 2:
            raise ValueError(
                f"stage.samples_per_prompt: got {self.samples_per_prompt}, expected at least 2, since a response's "
                "baseline is the other responses to the same prompt"
            )
        self.clip = clip

    def advantages(self, experience: Experience) -> Experience:
        rewards = experience.rewards - self.beta * experience.kl.sum(1)
        advantages = group_relative(rewards, group_size=self.samples_per_prompt, variant="rloo", eps=0.0)
        return experience._replace(advantages=advantages)

    def compute_loss(self, batch: Minibatch) -> LossOutput:
        mask, advantages = batch.mask, batch.advantages
        assert advantages is not None
        logprobs, entropies = response_logprobs(self.policy, batch.packed, temperature=self.sampling.temperature)
        old = zero_outside(batch.old_logprobs, mask)
        summed, summed_old = zero_outside(logprobs, mask).sum(1), old.sum(1)
        every = torch.ones_like(summed, dtype=torch.bool)
        losses, clipped = clipped_surrogate(
            summed, summed_old, advantages, every, clip_low=self.clip, clip_high=self.clip, dual_clip=None
        )
        log_ratio = torch.where(mask, logprobs.detach() - old, 0.0)
        metrics = {
            "clip_fraction": clipped.float().mean(),
            "approx_kl": approximate_kl(logprobs, old, mask),
            "ratio_max": log_ratio.sum(1).exp().max(),
            "entropy": masked_mean(entropies, mask),
        }
        return LossOutput(
            (Term(losses.mean(), len(mask)),), metrics, dict.fromkeys(("approx_kl", "entropy"), mask.sum())
        )
