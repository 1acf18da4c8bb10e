"""On-policy distillation: the policy learns a teacher's next-token distributions where its own samples lead."""

from collections.abc import Callable
from typing import Any

import torch

from components.functional.divergences import Kind, check_kind
from components.functional.masking import masked_mean
from components.functional.output_layer import LinearDivergence
from components.functional.seeding import seeded
from components.generation.generate import Samples
from components.generation.responses import response_divergences
from components.generation.rollout import PackedResponses, shares
from components.models.heads import CausalLM
from components.stages.rollouts import SHOWN, Further, RolloutStage
from components.training.averages import Averages
from components.training.contract import Chart, LossOutput, Term

EVEN = 0.5  # beta of the Jensen–Shannon divergence that treats both alike


class Distill(RolloutStage):
    """Generalized knowledge distillation on the policy's own samples (Agarwal et al. 2024, GKD, with λ = 1): at every
    token of a sampled response, the divergence between the whole distributions of teacher and policy, without a
    gradient through sampling and without a reward.

    teacher: builds the model to learn from, which is then frozen; any size, with the policy's vocabulary. divergence:
    forward KL(teacher‖policy), reverse KL(policy‖teacher) or jsd, between them at beta (None: 0.5); see
    functional.divergences. Both distributions are at sampling.temperature.

    Metrics in addition to those of RolloutStage, in nats:
    reverse_kl, forward_kl   KL(policy‖teacher), KL(teacher‖policy) of the next token, exact over the vocabulary, mean
                          over tokens; → 0
    response_kl           mean over responses of the sum of reverse_kl over their tokens: an estimate of
                          KL(policy‖teacher) of whole responses, as a rule of less variance than the mean of their
                          log-ratios
    seconds_*             also of divergence, in which policy and teacher read the samples
    train/loss            the divergence that is minimized, mean over tokens
    """

    teacher: CausalLM
    frozen = ("teacher",)
    shares_trunk = False
    charts = (
        Chart("KL(policy‖teacher), nats per token", ("rollout/reverse_kl", "val/reverse_kl")),
        Chart("KL(teacher‖policy), nats per token", ("rollout/forward_kl", "val/forward_kl")),
        Chart("KL(policy‖teacher), nats per response", ("rollout/response_kl", "val/response_kl")),
        Chart("true quality", ("rollout/gold", "rollout/correct", "rollout/wrong_name", "val/gold")),
        Chart("entropy, nats per token", ("rollout/entropy", "val/entropy")),
        Chart("length, tokens", ("rollout/length", "val/length")),
        Chart("ended by themselves", ("rollout/finished",), 0.9, 1.0),
        Chart("loss, nats per token", ("train/loss",)),
        Chart("gradient norm", ("train/grad_norm",)),
    )
    minibatch_of = staticmethod(PackedResponses.of)

    def __init__(
        self, teacher: Callable[[], CausalLM], divergence: Kind = "reverse", beta: float | None = None, **shared: Any
    ) -> None:
        super().__init__(**shared)
        if beta is not None and divergence != "jsd":
            raise ValueError(f"stage.beta: got {beta}, but only divergence=jsd has one, and it is {divergence}")
        self.teacher_builder = teacher
        self.divergence, self.beta = divergence, EVEN if beta is None else beta
        check_kind(divergence, self.beta)

    def configure_model(self) -> None:
        if not hasattr(self, "policy"):
            self.adopt("policy", self.policy_builder())
            self.adopt("teacher", self.teacher_builder())
            check_same_ids(self.policy, self.teacher)

    def collect(
        self, prompts: list[dict[str, Any]], rollout: int, further: Further | None = None
    ) -> list[PackedResponses]:
        """Samples responses, reports how far from the teacher they are, and returns them in minibatches.

        Sampling in rollout n depends on (seed, rank, n) alone, so resuming needs only n.
        """
        self.clock.mark("update")
        prompts = self.repeated(prompts)
        ids = [prompt["ids"] for prompt in prompts]
        with self.collecting():
            samples = self.sample(ids, seeded(self.device, self.run.seed, self.global_rank, rollout))
            self.count_spent(ids, samples.mask)
            self.report(prompts, samples, self.assess(prompts, samples))
        self.self_check(samples)
        order = seeded("cpu", self.run.seed, self.global_rank, rollout, 1)
        dealt = shares(len(ids), epochs=self.epochs, count=self.minibatches, generator=order)
        parts = [self.packed_rows(prompts, samples.ids, samples.mask, rows) for rows in dealt]
        self.log_seconds()
        return parts

    def assess(self, prompts: list[dict[str, Any]], samples: Samples) -> LinearDivergence:
        """How far from the teacher the policy is at every token of all samples, computed in one part per minibatch."""
        parts = self.packed_parts(prompts, samples.ids, samples.mask)
        totals, *tokens = zip(*map(self.distance, parts), strict=True)
        self.clock.mark("divergence")
        return LinearDivergence(torch.stack(totals).sum(), *map(torch.cat, tokens))

    def distance(self, packed: PackedResponses) -> LinearDivergence:
        """How far from the teacher the policy is at every token, with a gradient for the policy."""
        return response_divergences(
            self.policy,
            self.teacher,
            packed,
            kind=self.divergence,
            beta=self.beta,
            temperature=self.sampling.temperature,
        )

    def validation_step(self, prompts: list[dict[str, Any]], batch_idx: int) -> None:
        prompts = self.repeated(prompts)
        ids = [prompt["ids"] for prompt in prompts]
        with self.collecting(), self.clock.paused():
            samples = self.sample(ids, seeded(self.device, self.run.seed, self.global_rank, batch_idx, 2))
            found = self.assess(prompts, samples)
        self.add_responses(self._validation, prompts, samples, found)

    def report(self, prompts: list[dict[str, Any]], samples: Samples, found: LinearDivergence) -> None:
        """Logs the metrics of the rollout, and keeps part of it for histograms and the table of samples."""
        rollout = Averages()
        self.add_responses(rollout, prompts, samples, found)
        metrics = {name: float(value) for name, value in rollout.read(self.reduced).items()}
        self.log_now({f"rollout/{name}": value for name, value in metrics.items()})
        self.headline = {name: metrics[name] for name in ("reverse_kl", "gold", "entropy") if name in metrics}
        response_kl = found.reverse.sum(1)
        self._latest = {"rollout/response_kl": response_kl, "rollout/lengths": samples.mask.sum(1).float()}
        self.show(prompts, samples.responses()[:SHOWN], {"response_kl": response_kl})

    def add_responses(
        self, averages: Averages, prompts: list[dict[str, Any]], samples: Samples, found: LinearDivergence
    ) -> None:
        """Adds the metrics of sampled responses, and their true quality if the data has a judge."""
        mask = samples.mask
        for name, values in (
            ("reverse_kl", found.reverse),
            ("forward_kl", found.forward),
            ("entropy", found.entropy),
        ):
            averages.add(name, masked_mean(values, mask), mask.sum())
        for name, values in (
            ("response_kl", found.reverse.sum(1)),
            ("length", mask.sum(1)),
            ("finished", samples.finished),
        ):
            averages.add(name, values.double().mean(), len(mask))
        judged = self.data.judge_responses(prompts, samples.responses(), samples.finished.tolist())
        for name, share in judged.items():
            averages.add(name, torch.tensor(share, device=self.device), len(mask))

    def self_check(self, samples: Samples) -> None:
        """Checks, once per process, that responses are valid. Raises SelfCheckError if not."""
        if not self._checked:
            self.log_checks(self.check_of_responses(*samples))
            self._checked = True

    def compute_loss(self, batch: PackedResponses) -> LossOutput:
        found, tokens = self.distance(batch), batch.mask.sum()
        metrics = {
            "reverse_kl": masked_mean(found.reverse, batch.mask),
            "forward_kl": masked_mean(found.forward, batch.mask),
            "entropy": masked_mean(found.entropy, batch.mask),
        }
        return LossOutput((Term(found.total / tokens.clamp(min=1), tokens),), metrics)

    def flops_per_token(self) -> float:
        return super().flops_per_token() + self.teacher.flops_per_token.forward


def check_same_ids(policy: CausalLM, teacher: CausalLM) -> None:
    """Raises ValueError unless the same ids have a token in both models; the padding of either has none."""
    policy_ids, teacher_ids = (
        set(range(model.config.vocab_size)) - set(model.config.unused_ids) for model in (policy, teacher)
    )
    if policy_ids != teacher_ids:
        raise ValueError(
            f"stage.teacher: the policy has tokens for {len(policy_ids)} ids and the teacher for {len(teacher_ids)}, "
            "and they are not the same ids. A teacher needs the policy's vocabulary: both from one tokenizer"
        )
