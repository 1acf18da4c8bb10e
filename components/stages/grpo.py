"""GRPO: PPO without a value model; each response is compared with the others to the same prompt."""

from typing import Any, Literal

import torch
from torch import Tensor

from components.functional.advantages import group_relative
from components.functional.logprobs import kl_k3
from components.functional.losses import aggregate, clipped_surrogate
from components.functional.masking import masked_mean, zero_outside
from components.generation.responses import approximate_kl, response_logprobs
from components.generation.rollout import Experience
from components.stages.onpolicy import OnPolicy
from components.training.contract import Chart, LossOutput, Term

Advantage = Literal["grpo", "dr_grpo"]
Aggregation = Literal["sequence_mean", "token_mean", "fixed_length"]
VARIANTS: dict[str, tuple[Advantage, Aggregation]] = {
    "grpo": ("grpo", "sequence_mean"),
    "dapo": ("grpo", "token_mean"),
    "dr_grpo": ("dr_grpo", "fixed_length"),
}
EPS = 1e-4  # added to a group's standard deviation


class GRPO(OnPolicy):
    """Group-relative policy optimization (Shao et al. 2024, eq. 3): clipped ratios, plus beta · KL (by k3) in the loss.

    clip: band of the policy ratio (clip_high: its upper side, if different).
    variant: how advantages and token losses are averaged.
        grpo      (r − mean) / std of the group; mean over a response's tokens, then over responses
        dapo      the same advantages; mean over all tokens (Yu et al. 2025). Its asymmetric clipping is clip_high. Its
                  resampling of groups with equal rewards is not implemented: they are counted in rollout/equal_groups
        dr_grpo   r − mean; sum over tokens / (responses · max_new_tokens) (Liu et al. 2025)

    Metrics in addition to those of OnPolicy:
    train/policy_loss, train/kl_loss   the two terms of the loss, the second before it is multiplied by beta
    train/clip_fraction    share of tokens whose ratio is clipped; healthy ≤ 0.2
    train/approx_kl        KL of the old to the new policy by k3, nats per token; healthy ≤ 0.05
    train/ratio_max        largest ratio of new to old probability
    train/entropy          of the policy being updated, nats per token
    """

    charts = (
        *OnPolicy.charts,
        Chart("groups with equal scores", ("rollout/equal_groups",), 0.0, 0.5),
        Chart("share of updates clipped", ("train/clip_fraction",), 0.0, 0.2),
        Chart("KL of an update, nats per token", ("train/approx_kl",), 0.0, 0.05),
        Chart("losses", ("train/policy_loss", "train/kl_loss")),
        Chart("gradient norm", ("train/grad_norm",)),
    )

    def __init__(
        self,
        clip: float,
        variant: Literal["grpo", "dapo", "dr_grpo"],
        clip_high: float | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if variant not in VARIANTS:
            raise ValueError(f"stage.variant: got {variant!r}, expected one of {', '.join(VARIANTS)}")
        if self.samples_per_prompt < 2:
            raise ValueError(
                f"stage.samples_per_prompt: got {self.samples_per_prompt}, expected a group of at least 2, since each "
                "response is compared with the others to the same prompt"
            )
        self.clip, self.clip_high = clip, clip if clip_high is None else clip_high
        self.advantage, self.aggregation = VARIANTS[variant]

    def advantages(self, experience: Experience) -> Experience:
        relative = group_relative(
            experience["rewards"], group_size=self.samples_per_prompt, variant=self.advantage, eps=EPS
        )
        return {"advantages": relative[:, None].expand_as(experience["mask"]).contiguous()}

    def compute_loss(self, batch: Experience) -> LossOutput:
        mask, old = batch["mask"], batch["old_logprobs"]
        logprobs, entropies = response_logprobs(self.policy, batch, temperature=self.sampling.temperature)
        losses, clipped = clipped_surrogate(
            logprobs, old, batch["advantages"], mask, clip_low=self.clip, clip_high=self.clip_high, dual_clip=None
        )
        kl = kl_k3(zero_outside(logprobs, mask), zero_outside(batch["reference_logprobs"], mask))
        policy_loss, kl_loss = (
            aggregate(token_losses, mask, how=self.aggregation, max_length=self.sampling.max_new_tokens)
            for token_losses in (losses, kl)
        )
        log_ratio = torch.where(mask, logprobs.detach() - old, 0.0)
        metrics = {
            "policy_loss": policy_loss.detach(),
            "kl_loss": kl_loss.detach(),
            "clip_fraction": masked_mean(clipped.float(), mask),
            "approx_kl": approximate_kl(logprobs, old, mask),
            "ratio_max": log_ratio.exp().max(),
            "entropy": masked_mean(entropies, mask),
        }
        averaged_over = mask.sum() if self.aggregation == "token_mean" else len(mask)
        token_weights: dict[str, Tensor | int] = dict.fromkeys(("clip_fraction", "approx_kl", "entropy"), mask.sum())
        return LossOutput((Term(policy_loss + self.beta * kl_loss, averaged_over),), metrics, token_weights)
