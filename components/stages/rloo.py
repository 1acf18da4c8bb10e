"""RLOO: REINFORCE with the mean of the other responses to a prompt as its baseline."""

from typing import Any

import torch

from components.functional.advantages import group_relative
from components.functional.losses import clipped_surrogate
from components.functional.masking import masked_mean, zero_outside
from components.generation.responses import approximate_kl, response_logprobs
from components.generation.rollout import Experience
from components.stages.onpolicy import OnPolicy
from components.training.contract import Chart, LossOutput, Term


class RLOO(OnPolicy):
    """REINFORCE leave-one-out (Ahmadian et al. 2024): a whole response is one action, its reward score − beta · KL.

    Several updates on one rollout are weighted by the clipped ratio of whole responses; at ratio 1 the gradient is
    REINFORCE's. clip: that ratio's band.

    Metrics beside those of OnPolicy:
    train/clip_fraction    share of responses whose update the clip decides; healthy ≤ 0.3, whole ratios move more
    train/approx_kl        old → new policy by k3 per token; healthy ≤ 0.05
    train/ratio_max        largest ratio of new to old probability of a response
    train/entropy          of the policy being updated, nats per token
    """

    charts = (
        *OnPolicy.charts,
        Chart("groups without a difference", ("rollout/equal_groups",), 0.0, 0.5),
        Chart("share of updates clipped", ("train/clip_fraction",), 0.0, 0.3),
        Chart("KL of an update, nats per token", ("train/approx_kl",), 0.0, 0.05),
        Chart("gradient norm", ("train/grad_norm",)),
    )

    def __init__(self, clip: float, **shared: Any) -> None:
        super().__init__(**shared)
        if self.samples_per_prompt < 2:
            raise ValueError(
                f"stage.samples_per_prompt: got {self.samples_per_prompt}, expected at least 2: the other responses to "
                "its prompt are a response's baseline"
            )
        self.clip = clip

    def advantages(self, known: Experience) -> Experience:
        rewards = known["rewards"] - self.beta * known["kl"].sum(1)
        return {
            "advantages": group_relative(rewards, group_size=self.samples_per_prompt, variant="rloo", eps=0.0),
        }

    def compute_loss(self, batch: Experience) -> LossOutput:
        mask = batch["mask"]
        logprobs, entropies = response_logprobs(self.policy, batch, temperature=self.sampling.temperature)
        old = zero_outside(batch["old_logprobs"], mask)
        whole, whole_old = zero_outside(logprobs, mask).sum(1), old.sum(1)
        everyone = torch.ones_like(whole, dtype=torch.bool)
        losses, clipped = clipped_surrogate(
            whole, whole_old, batch["advantages"], everyone, clip_low=self.clip, clip_high=self.clip, dual_clip=None
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
