"""GRPO: PPO without a value model; each response is compared with the others to the same prompt."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from components.functional.advantages import group_decoupled, group_relative
from components.functional.logprobs import kl_k1, kl_k3
from components.functional.losses import aggregate, clipped_surrogate, clipped_weight, sequence_surrogate
from components.functional.masking import masked_mean, zero_outside
from components.functional.seeding import seeded
from components.generation.responses import approximate_kl, response_logprobs
from components.generation.rollout import Experience, Minibatch, ModelOutputs
from components.rewards.reward import as_reward
from components.stages.onpolicy import OnPolicy
from components.stages.rollouts import Further
from components.system.limits import NonNegativeInt, Positive
from components.training.contract import Chart, LossOutput, Term


class Variant(NamedTuple):
    """How a variant uses rewards and ratios; its published bounds on a ratio are 1 − clip_low and 1 + clip_high."""

    advantage: Literal["grpo", "dr_grpo"]
    surrogate: Callable[..., tuple[Tensor, Tensor]]
    aggregation: Literal["sequence_mean", "token_mean", "fixed_length"]
    clip_low: float
    clip_high: float
    refill: int = 0


VARIANTS = {
    "grpo": Variant("grpo", clipped_surrogate, "sequence_mean", 0.2, 0.2),
    "dapo": Variant("grpo", clipped_surrogate, "token_mean", 0.2, 0.28, refill=10),
    "dr_grpo": Variant("dr_grpo", clipped_surrogate, "fixed_length", 0.2, 0.2),
    "gspo": Variant("grpo", sequence_surrogate, "sequence_mean", 3e-4, 4e-4),
    "cispo": Variant("grpo", clipped_weight, "token_mean", 1.0, 4.0),
}
SAMPLED = ("response_ids", "mask", "finished", "rewards", "reward_parts")  # kept by a refill, which recomputes the rest
EPS = 1e-4  # added to a group's standard deviation


class GRPO(OnPolicy):
    """Group-relative policy optimization (Shao et al. 2024, eq. 3): clipped ratios, plus beta · KL (by k3) in the loss.

    clip, clip_high: the ratio's bounds are 1 − clip and 1 + clip_high; clip_high None: as clip; clip None: as published
    for the variant, in brackets below.
    variant: how advantages, ratios and token losses are combined.
        grpo      (r − mean) / std of the group; mean over a response's tokens, then over responses (0.2, 0.2)
        dapo      the same advantages; mean over all tokens (Yu et al. 2025; 0.2, 0.28),
                  with refill 10
        dr_grpo   r − mean; sum over tokens / (responses · max_new_tokens) (Liu et al. 2025; 0.2, 0.2)
        gspo      as grpo, with one ratio per response, its tokens' geometric mean (Zheng et al. 2025; 3e-4, 4e-4).
                  Means of many tokens move little: short responses take wider bounds
        cispo     as dapo, but a bound limits the weight of a token's gradient and never removes it (MiniMax 2025, which
                  has no lower bound and does not state the upper one; here 1, 4: weights from 0 to 5)

    refill: most rounds in which groups whose rewards are all equal, and so teach nothing, are replaced by groups of
    further prompts (dynamic sampling; Yu et al. 2025, section 3.2). All processes sample the same number in a round.
    Equal groups that are left after the last round stay in the rollout. None: as published for the variant, 0 except
    for dapo.

    decouple_rewards: normalizes each of several reward functions within its group by itself, then their weighted sum
    over the rollout of all processes (Liu et al. 2026, GDPO; `group_decoupled`), in place of the sum within its group.
    A group then counts as equal, for rollout/equal_groups and for refill, if that leaves all of it at 0.

    Metrics in addition to those of OnPolicy:
    rollout/refilled       share of prompts that were replaced; less than rollout/equal_groups if rounds did not
                           suffice. The other rollout/ metrics are of the prompts that were sampled first
    train/policy_loss, train/kl_loss   the two terms of the loss, the second before it is multiplied by beta
    train/clip_fraction    share of tokens whose ratio (gspo: whose response's) is clipped; healthy ≤ 0.2
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
        variant: Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo"] = "grpo",
        clip: Positive | None = None,
        clip_high: Positive | None = None,
        refill: NonNegativeInt | None = None,
        decouple_rewards: bool = False,
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
        self.variant = VARIANTS[variant]
        self.refill = self.variant.refill if refill is None else refill
        usual = (self.variant.clip_low, self.variant.clip_high) if clip is None else (clip, clip)
        self.clip_low, self.clip_high = usual[0], usual[1] if clip_high is None else clip_high
        self.decouple_rewards = decouple_rewards
        if decouple_rewards and self.variant.advantage != "grpo":
            others = ", ".join(name for name, one in VARIANTS.items() if one.advantage == "grpo")
            raise ValueError(
                f"stage.decouple_rewards: variant {variant} divides by no standard deviation, so there is nothing to "
                f"decouple; expected one of {others}"
            )
        if decouple_rewards and self.missing_end_score is not None:
            raise ValueError(
                f"stage.missing_end_score: got {self.missing_end_score}, which replaces a sum of rewards, but with "
                "stage.decouple_rewards each counts by itself; expected null, and a function that reads `finished`"
            )

    def configure_model(self) -> None:
        super().configure_model()
        count = len(as_reward(self.reward).weights)
        if self.decouple_rewards and count < 2:
            raise ValueError(
                "stage.decouple_rewards: normalizes each reward by itself, expected several reward functions, got "
                f"{count}. Name them: reward=function 'reward.functions={{<name>: <file.py>:<function>, …}}'"
            )

    def refilled(
        self, prompts: list[dict[str, Any]], experience: Experience, rollout: int, further: Further | None
    ) -> tuple[list[dict[str, Any]], Experience]:
        """Groups of further prompts in place of those whose rewards are all equal, in at most `refill` rounds."""
        if not self.refill:
            return prompts, experience
        assert further is not None
        prompts, known = list(prompts), {name: getattr(experience, name) for name in SAMPLED}
        empty, replaced = self.all_equal(experience.rewards, experience.reward_parts), 0
        for number in range(1, self.refill + 1):
            missing = int(self.reduced(empty.sum(), "max"))  # the same on all processes
            if not missing:
                break
            asked = [prompt for prompt in further(missing) for _ in range(self.samples_per_prompt)]
            fresh = self.scored(asked, seeded(self.device, self.run.seed, self.global_rank, rollout, 3, number))
            useful = (~self.all_equal(fresh.rewards, fresh.reward_parts)).nonzero().flatten()
            places = empty.nonzero().flatten()[: len(useful)]
            to, source = self.rows_of(places), self.rows_of(useful[: len(places)])
            known = {name: with_rows(known[name], to, getattr(fresh, name), source) for name in SAMPLED}
            for row, other in zip(to.tolist(), source.tolist(), strict=True):
                prompts[row] = asked[other]
            empty[places] = False
            replaced += len(places)
        share = self.all_reduced(replaced) / self.all_reduced(len(empty))
        self.log_now({"rollout/refilled": float(share)})
        if not replaced:
            return prompts, experience
        parts = self.packed_parts(prompts, known["response_ids"], known["mask"])
        outputs = ModelOutputs.cat([self.assess_part(part) for part in parts])  # on the rows of the first ratio
        self.count_read([prompt["ids"] for prompt in prompts], known["mask"], [self.policy, self.reference])
        kl = kl_k1(outputs.old_logprobs, outputs.reference_logprobs)
        return prompts, Experience(**known, **outputs._asdict(), kl=kl)

    def all_equal(self, rewards: Tensor, parts: Tensor | None) -> Tensor:
        if not self.decouple_rewards:
            return super().all_equal(rewards, parts)
        return (self.decoupled(parts).view(-1, self.samples_per_prompt) == 0).all(1)

    def decoupled(self, parts: Tensor | None, **across: Any) -> Tensor:
        """(N,) advantages from parts (N, K) of the rewards, each normalized separately; across: for group_decoupled."""
        assert parts is not None
        weights = torch.tensor(list(as_reward(self.reward).weights.values()))
        return group_decoupled(parts, weights, group_size=self.samples_per_prompt, eps=EPS, **across)

    def rows_of(self, groups: Tensor) -> Tensor:
        """(M · samples_per_prompt,) int64: the indices of the responses in the groups (M,) int64."""
        size = self.samples_per_prompt
        return (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()

    def advantages(self, experience: Experience) -> Experience:
        if self.decouple_rewards:
            relative = self.decoupled(experience.reward_parts, sum_over_ranks=self.sum_over_ranks)
        else:
            relative = group_relative(
                experience.rewards, group_size=self.samples_per_prompt, variant=self.variant.advantage, eps=EPS
            )
        return experience._replace(advantages=relative[:, None].expand_as(experience.mask).contiguous())

    def compute_loss(self, batch: Minibatch) -> LossOutput:
        mask, old, advantages = batch.mask, batch.old_logprobs, batch.advantages
        assert advantages is not None
        logprobs, entropies = response_logprobs(self.policy, batch.packed, temperature=self.sampling.temperature)
        losses, clipped = self.variant.surrogate(
            logprobs, old, advantages, mask, clip_low=self.clip_low, clip_high=self.clip_high
        )
        kl = kl_k3(zero_outside(logprobs, mask), zero_outside(batch.reference_logprobs, mask))
        policy_loss, kl_loss = (
            aggregate(token_losses, mask, how=self.variant.aggregation, max_length=self.sampling.max_new_tokens)
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
        averaged_over = mask.sum() if self.variant.aggregation == "token_mean" else len(mask)
        token_weights: dict[str, Tensor | int] = dict.fromkeys(("clip_fraction", "approx_kl", "entropy"), mask.sum())
        return LossOutput((Term(policy_loss + self.beta * kl_loss, averaged_over),), metrics, token_weights)


def with_rows(tensor: Tensor | None, rows: Tensor, others: Tensor | None, source: Tensor) -> Tensor | None:
    """`tensor` (N, …) with its rows `rows` (M,) replaced by the rows `source` (M,) of `others`; if (N, R), both are
    padded with zeros to the wider one first. None for None."""
    if tensor is None or others is None:
        return None
    others = others[source]
    if tensor.dim() == 2:
        width = max(tensor.shape[1], others.shape[1])
        tensor, others = (pad(one, (0, width - one.shape[1])) for one in (tensor, others))
    return tensor.index_copy(0, rows, others)
