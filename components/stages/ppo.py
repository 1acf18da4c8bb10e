"""PPO: the policy learns from a reward, kept close to the SFT model by a KL penalty."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from components.data.batches import WithText
from components.functional.advantages import gae, token_rewards
from components.functional.controllers import adaptive_beta
from components.functional.host_copy import HostCopy
from components.functional.losses import ppo_policy, ppo_value
from components.functional.masking import masked_mean, masked_whiten
from components.generation.responses import approximate_kl, explained_variance, response_logprobs, response_values
from components.generation.rollout import Experience, Minibatch, ModelOutputs, PackedResponses
from components.models.heads import ScalarModel, value_from_causal
from components.stages.language import language_loss
from components.stages.onpolicy import OnPolicy
from components.stages.rollouts import Further
from components.system.limits import Count, NonNegative, Positive, Share
from components.training.contract import Chart, LossOutput, Term
from components.training.optimizers import Joint


class PPO(OnPolicy):
    """Clipped PPO with GAE and a separate value model, which usually starts as the reward model (Ouyang et al. 2022,
    section 3.5), or, if the reward is no model, as the policy with a new head.

    beta: coefficient of the KL to the reference in the reward; kl_target (nats per response) makes it adaptive, with
    kl_horizon in responses. clip: band of the policy ratio (clip_high: its upper side, if different). value_clip: band
    of the value around its old value, null for no clipping. target_kl: ends a rollout's updates early once approx_kl
    exceeds 1.5 times it; on a GPU one update later, so that none waits for its own. pretraining_coefficient > 0 adds
    the language loss on pretraining text (data.pretraining) to every update (PPO-ptx; Ouyang et al. 2022, eq. 2).

    Metrics in addition to those of OnPolicy:
    rollout/explained_variance   of the returns by the value model; → 1, healthy above 0 after the first rollouts; left
                                 out if all returns are equal
    train/policy_loss, train/value_loss      the two terms of the loss
    train/clip_fraction          share of tokens whose ratio is clipped; healthy ≤ 0.2
    train/value_clip_fraction    share of tokens whose value is clipped
    train/approx_kl              KL of the old to the new policy by k3, nats per token; healthy ≤ 0.05, spikes mean too
                                 large a step
    train/ratio_max              largest ratio of new to old probability
    train/entropy                of the policy being updated, nats per token
    train/pretraining_loss       of the pretraining text, if any, nats per token
    """

    value: ScalarModel
    mixes_text = True
    charts = (
        *OnPolicy.charts,
        Chart("share of updates clipped", ("train/clip_fraction",), 0.0, 0.2),
        Chart("KL of an update, nats per token", ("train/approx_kl",), 0.0, 0.05),
        Chart("variance explained by the value model", ("rollout/explained_variance",), 0.0, 1.0),
        Chart("losses", ("train/policy_loss", "train/value_loss", "train/pretraining_loss")),
        Chart("gradient norms", ("train/grad_norm_policy", "train/grad_norm_value")),
        Chart("KL coefficient", ("rollout/beta",)),
    )

    def __init__(
        self,
        value: Callable[[], ScalarModel],
        value_lr: NonNegative = 3e-4,
        kl_target: Positive | None = None,
        kl_horizon: Count = 10_000,
        gamma: Share = 1.0,
        lam: Share = 0.95,
        clip: Positive = 0.2,
        value_clip: Positive | None = 0.2,
        value_coefficient: NonNegative = 0.1,
        target_kl: Positive | None = None,
        pretraining_coefficient: NonNegative = 0.0,
        clip_high: Positive | None = None,
        dual_clip: float | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if kl_target is not None and self.beta == 0:
            raise ValueError(
                f"stage.beta: got 0 with stage.kl_target={kl_target}, which multiplies beta by a factor, so it would "
                "stay 0. Start above 0, for example with stage.beta=0.1, or set stage.kl_target=null"
            )
        self.value_builder = value
        self.value_lr, self.kl_target, self.kl_horizon = value_lr, kl_target, kl_horizon
        self.gamma, self.lam, self.clip, self.dual_clip = gamma, lam, clip, dual_clip
        self.clip_high = clip if clip_high is None else clip_high
        self.value_clip, self.value_coefficient = value_clip, value_coefficient
        self.target_kl, self.pretraining_coefficient = target_kl, pretraining_coefficient
        self._kl: HostCopy | None = None  # approx_kl of the latest update, where reading it would wait for the device

    def configure_model(self) -> None:
        super().configure_model()
        if not hasattr(self, "value"):
            value = self.start_of_value()
            if self.score_scale > 0:  # set, not measured
                value.rescale_(scale=float(self.score_scale), shift=0.0)
            self.adopt("value", value)

    def start_of_value(self) -> ScalarModel:
        """The value model before training. With adapters, it shares the trunk of the reward model or the policy if it
        starts from the same weights."""
        if self.run.lora is not None and same_start(self.value_builder, self.reward_builder):
            assert isinstance(self.reward, ScalarModel)
            return self.reward.fork()
        if self.run.lora is not None and same_folder(self.value_builder, self.policy_builder):
            return value_from_causal(self.policy)
        return self.value_builder()

    def on_fit_start(self) -> None:
        """Raises ValueError if there is pretraining text without a coefficient for it, or the reverse."""
        mixed = self.data.pretraining is not None
        if mixed != (self.pretraining_coefficient > 0):
            raise ValueError(
                f"stage.pretraining_coefficient is {self.pretraining_coefficient}, but the data has "
                f"{'' if mixed else 'no '}pretraining text: "
                "set both (data=world_prompts_ptx or data.pretraining) or neither"
            )
        super().on_fit_start()

    def build_optimizer(self) -> Optimizer:
        """One optimizer whose groups have two learning rates: the policy's groups, then the value model's."""
        policy, value = (
            self.optimizer_builder([(name, p) for name, p in self.named_groups() if name.startswith(network)])
            for network in ("policy.", "value.")
        )
        for group in value.param_groups:
            group |= {"lr": self.value_lr, "name": f"value_{group.get('name', '')}"}
        return Joint(policy, value)

    def collect(self, prompts: list[dict[str, Any]], rollout: int, further: Further | None = None) -> list[Minibatch]:
        self._kl = None  # of another rollout
        return super().collect(prompts, rollout, further)

    def assess_part(self, part: PackedResponses) -> ModelOutputs:
        outputs = super().assess_part(part)._replace(old_values=response_values(self.value, part))
        self.clock.mark("value")
        return outputs

    def calibrate(self, outputs: ModelOutputs, score: Tensor) -> ModelOutputs:
        """A value model that starts as the reward model takes the same scale."""
        if self.score_scale > 0:
            return outputs
        super().calibrate(outputs, score)
        self.value.rescale_(scale=float(self.score_scale), shift=0.0)
        assert outputs.old_values is not None
        return outputs._replace(old_values=outputs.old_values * self.score_scale)

    def advantages(self, experience: Experience) -> Experience:
        mask, values = experience.mask, experience.old_values
        assert values is not None
        rewards = token_rewards(experience.rewards, experience.kl, mask, beta=float(self.beta))
        advantages, returns = gae(rewards, values, mask, gamma=self.gamma, lam=self.lam)
        explained = float(explained_variance(values, returns, mask, sum_over_ranks=self.sum_over_ranks))
        if not math.isnan(explained):
            self.log_now({"rollout/explained_variance": explained})
        self.adapt_beta(experience.kl)
        whitened = masked_whiten(advantages, mask, shift_mean=True, sum_over_ranks=self.sum_over_ranks)
        return experience._replace(advantages=whitened, returns=returns)

    def adapt_beta(self, kl: Tensor) -> None:
        """Adjusts beta toward kl_target by the mean KL of all processes' responses; kl: (N, R) nats."""
        if self.kl_target is None:
            return
        episodes = int(self.sum_over_ranks(kl.new_tensor(len(kl))))
        mean = float(self.sum_over_ranks(kl.sum())) / episodes
        self.beta.fill_(adaptive_beta(float(self.beta), mean, episodes, target=self.kl_target, horizon=self.kl_horizon))

    def compute_loss(self, batch: Minibatch | WithText) -> LossOutput:
        """The loss of a minibatch, plus pretraining_coefficient times that of its text, if it has any."""
        if not isinstance(batch, WithText):
            return self.loss_of_responses(batch)
        responses, text = self.loss_of_responses(batch.minibatch), language_loss(self.policy, batch.text)
        [own] = responses.terms
        steps = (None, None) if batch.step_weights is None else batch.step_weights
        added = Term(self.pretraining_coefficient * text.loss, text.weight, steps[1])
        return LossOutput(
            (own._replace(step_weight=steps[0]), added),
            {**responses.metrics, "pretraining_loss": text.loss.detach()},
            {"pretraining_loss": text.weight},
        )

    def loss_of_responses(self, batch: Minibatch) -> LossOutput:
        """The policy's loss on a minibatch, plus value_coefficient times the value model's."""
        mask, old, advantages = batch.mask, batch.old_logprobs, batch.advantages
        assert advantages is not None and batch.old_values is not None and batch.returns is not None
        logprobs, entropies = response_logprobs(self.policy, batch.packed, temperature=self.sampling.temperature)
        values = response_values(self.value, batch.packed)
        policy_loss, clip_fraction = ppo_policy(
            logprobs,
            old,
            advantages,
            mask,
            clip_low=self.clip,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
        )
        value_loss, value_clip_fraction = ppo_value(
            values, batch.old_values, batch.returns, mask, clip_range=self.value_clip
        )
        log_ratio = torch.where(mask, logprobs.detach() - old, 0.0)
        metrics = {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "clip_fraction": clip_fraction,
            "value_clip_fraction": value_clip_fraction,
            "approx_kl": approximate_kl(logprobs, old, mask),
            "ratio_max": log_ratio.exp().max(),
            "entropy": masked_mean(entropies, mask),
        }
        return LossOutput((Term(policy_loss + self.value_coefficient * value_loss, mask.sum()),), metrics)

    def configure_gradient_clipping(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        """Once per optimizer step: also ends the rollout's updates if approx_kl is too large."""
        if self.target_kl is not None:
            kl: HostCopy | None = HostCopy(self._training.read(self.reduced)["approx_kl"])
            if self.device.type != "cpu":
                kl, self._kl = self._kl, kl
            self.rollout_is_spent = kl is not None and float(kl.read()) > 1.5 * self.target_kl
        super().configure_gradient_clipping(optimizer, *args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["approx_kl"] = None if self._kl is None else float(self._kl.read())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kl = checkpoint.get("approx_kl")  # none in a checkpoint from before it was kept
        self._kl = None if kl is None else HostCopy(torch.tensor(kl, dtype=torch.float64))


def same_folder(one: Callable[[], Any], other: Callable[[], Any]) -> bool:
    """Whether two builders read the same weights, even if they build different models from them."""
    calls = [builder.keywords for builder in (one, other) if isinstance(builder, partial)]
    folders = [(call["path"], call.get("context")) for call in calls if "path" in call]
    return len(folders) == 2 and folders[0] == folders[1]


def same_start(one: Callable[[], Any], other: Callable[[], Any]) -> bool:
    """Whether two builders load the same model, regardless of dtype."""
    calls = [(b.func, b.args, {**b.keywords, "dtype": None}) for b in (one, other) if isinstance(b, partial)]
    return len(calls) == 2 and calls[0] == calls[1]
