"""Base of the on-policy stages: collects experience with a policy, its reference and a reward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from components.functional.logprobs import kl_k1
from components.functional.masking import masked_mean
from components.functional.seeding import seeded
from components.generation.generate import Samples
from components.generation.responses import response_logprobs, summary, with_spread
from components.generation.rollout import Experience, Minibatch, ModelOutputs, PackedResponses, minibatches
from components.models.heads import CausalLM, ScalarModel
from components.rewards.functions import answered_in
from components.rewards.reward import Reward, RewardBatch, Scores, as_reward, batch_of
from components.stages.rollouts import SHOWN, Further, RolloutStage
from components.system.limits import NonNegative
from components.training.averages import Averages
from components.training.contract import Chart
from components.training.self_checks import check_first_forward, check_score_positions

PART = "reward_"  # prefix of the metric of one of a reward's functions


class OnPolicy(RolloutStage):
    """Samples responses, scores them, and turns them into minibatches. A subclass defines advantages and compute_loss.

    beta: the KL coefficient. reward: builds a network, which is then frozen, or any other Reward. missing_end_score:
    replaces the score of a response that did not end by itself within max_new_tokens; None keeps the reward's own score
    of it. score_scale: multiplies the reward's scores; None: set once, on the first rollout, to give scores unit
    standard deviation, so beta and learning rates mean the same for every reward model. The scale is a buffer and is
    saved.

    Metrics in addition to those of RolloutStage; score up and gold down is over-optimization:
    score                 mean score, missing ends included; rises, then levels off
    reward_<name>         mean score by one of the reward's functions, unscaled and unweighted, over the responses that
                          it applies to
    score_std             standard deviation within a rollout; near 0, scores saturate and nothing is left to learn
    kl                    mean over responses of Σ log π/π_ref, nats; 0 at first, stays below ~10; negative is a bug
    kl_stderr             standard error of kl over the rollout's responses
    kl_k3                 the same by the k3 estimator, never negative
    equal_groups          share of prompts whose responses (if several) all have the same score, so the reward gives
                          no signal; healthy below 0.5
    seconds_*             also of policy, reference, score, value (PPO)
    beta                  the current KL coefficient
    """

    reference: CausalLM
    reward: ScalarModel | Reward  # a network is frozen
    beta: Tensor
    score_scale: Tensor
    frozen: tuple[str, ...] = ("reference", "reward")
    charts: tuple[Chart, ...] = (
        Chart("score", ("rollout/score", "val/score")),
        Chart("true quality", ("rollout/gold", "rollout/correct", "rollout/wrong_name", "val/gold")),
        Chart("KL to the reference, nats per response", ("rollout/kl",), 0.0, 10.0),
        Chart("entropy, nats per token", ("rollout/entropy", "val/entropy")),
        Chart("standard deviation of scores", ("rollout/score_std",)),
        Chart("length, tokens", ("rollout/length", "val/length")),
        Chart("ended by themselves", ("rollout/finished",), 0.9, 1.0),
    )
    minibatch_of = staticmethod(Minibatch.of)

    def __init__(
        self,
        reward: Callable[[], ScalarModel | Reward],
        beta: NonNegative = 0.1,
        missing_end_score: float | None = None,
        score_scale: float | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.reward_builder = reward
        self.missing_end_score = missing_end_score
        self.register_buffer("beta", torch.tensor(float(beta)))
        if score_scale is not None and score_scale <= 0:
            raise ValueError(f"stage.score_scale: expected a factor above 0, or null to measure it, got {score_scale}")
        self.register_buffer("score_scale", torch.tensor(score_scale or 0.0))  # 0: not measured yet
        self._rollout_began = False

    def configure_model(self) -> None:
        if not hasattr(self, "policy"):
            self.adopt("policy", self.policy_builder())
            self.adopt("reference", self.as_before_training(self.policy, self.policy_builder))
            shared = {"trunk": self.policy.model} if self.run.reward_is_adapter else {}
            reward = self.reward_builder(**shared)
            if isinstance(reward, nn.Module):
                self.adopt("reward", reward)
            else:
                self.reward = reward
                self.frozen = tuple(name for name in self.frozen if name != "reward")

    def advantages(self, experience: Experience) -> Experience:
        """`experience` with the advantages (and returns) that the loss needs."""
        raise NotImplementedError

    def collect(self, prompts: list[dict[str, Any]], rollout: int, further: Further | None = None) -> list[Minibatch]:
        """The algorithm's outer loop: sample responses, score them, estimate advantages, return minibatches.

        Sampling in rollout n depends on (seed, rank, n) alone, so resuming needs only n. further: takes more prompts.
        """
        self.clock.mark("update")
        self.rollout_is_spent = False
        prompts = self.repeated(prompts)
        with self.collecting():
            experience = self.scored(prompts, seeded(self.device, self.run.seed, self.global_rank, rollout))
            self.report(experience, prompts)
            prompts, experience = self.refilled(prompts, experience, rollout, further)
            experience = self.advantages(experience)
        parts = self.split([prompt["ids"] for prompt in prompts], experience, rollout)
        self.self_check(experience, parts[0], rollout)
        self.log_seconds()
        return parts

    def scored(self, prompts: list[dict[str, Any]], generator: torch.Generator) -> Experience:
        """A response to each prompt, with everything that is computed from it except advantages."""
        samples = self.sample(ids := [prompt["ids"] for prompt in prompts], generator)
        outputs, scores = self.assess(prompts, samples)
        self.count_spent(ids, samples.mask)
        return self.experience(samples, self.calibrate(outputs, scores.total), scores)

    def refilled(
        self, prompts: list[dict[str, Any]], experience: Experience, rollout: int, further: Further | None
    ) -> tuple[list[dict[str, Any]], Experience]:
        """The prompts and the experience to train on; a subclass can replace some of those that were sampled first."""
        return prompts, experience

    def assess(self, prompts: list[dict[str, Any]], samples: Samples) -> tuple[ModelOutputs, Scores]:
        """The models' outputs on all samples, computed in one part per minibatch, and the samples' unscaled scores."""
        parts = self.packed_parts(prompts, samples.ids, samples.mask)
        outputs = ModelOutputs.cat([self.assess_part(part) for part in parts])
        batch = batch_of(prompts, samples.responses(), samples.finished.tolist(), self.data.tokenizer, parts)
        scores = as_reward(self.reward).score(batch).to(self.device)
        self.check_scores(scores.total, batch)
        self.clock.mark("score")
        return outputs, scores

    def check_scores(self, scores: Tensor, batch: RewardBatch) -> None:
        """Raises ValueError, with the prompt and the response, for a score (N,) that is not finite."""
        wrong = (~scores.isfinite()).nonzero().flatten().tolist()
        if wrong:
            kind = "reward model" if isinstance(self.reward, ScalarModel) else type(self.reward).__name__
            path = getattr(self.reward_builder, "keywords", {}).get("path")
            raise ValueError(
                f"the {kind}{f' at {path}' if path else ''} gave {len(wrong)} of {len(scores)} responses a score that "
                f"is not finite: {float(scores[wrong[0]])} on{answered_in(batch).described(wrong[0])}\n"
                "A reward model's training can have diverged, or it overflows in this precision. Try "
                "trainer.precision=32-true, or train another with python train.py stage=rm"
            )

    def assess_part(self, part: PackedResponses) -> ModelOutputs:
        """The models' outputs on packed responses.

        Log-probabilities are from the training forward on packed rows, so the first ratio is 1.
        """
        temperature = self.sampling.temperature
        logprobs, entropies = response_logprobs(self.policy, part, temperature=temperature)
        self.clock.mark("policy")
        reference, _ = response_logprobs(self.reference, part, temperature=temperature, with_entropy=False)
        self.clock.mark("reference")
        return ModelOutputs(logprobs, reference, entropies)

    def calibrate(self, outputs: ModelOutputs, score: Tensor) -> ModelOutputs:
        """On the first rollout, sets the scale that gives scores (N,) unit standard deviation over all processes.

        Returns `outputs`, with old values in the unit of scaled scores.
        """
        if self.score_scale > 0:
            return outputs
        score = score.double()
        sums = torch.stack([score.new_full((), len(score)), score.sum(), score @ score])
        count, total, squares = self.sum_over_ranks(sums)
        deviation = float((squares / count - (total / count) ** 2).clamp_min(0).sqrt())
        if deviation < 1e-6:
            raise ValueError(
                "the reward gives every response the same score, so nothing can be learned from it. Train a reward "
                "model again: python train.py stage=rm; or set stage.score_scale=1 for a reward that is rarely given"
            )
        self.score_scale.fill_(1 / deviation)
        return outputs

    def final_scores(self, score: Tensor, finished: Tensor) -> Tensor:
        """(N,) scaled scores; missing_end_score, if there is one, for responses that did not end by themselves."""
        scaled = score * (self.score_scale if self.score_scale > 0 else 1.0)
        if self.missing_end_score is None:
            return scaled
        return torch.where(finished, scaled, self.missing_end_score)

    def experience(self, samples: Samples, outputs: ModelOutputs, scores: Scores) -> Experience:
        """Assessed samples as experience, without advantages."""
        return Experience(
            response_ids=samples.ids,
            mask=samples.mask,
            finished=samples.finished,
            rewards=self.final_scores(scores.total, samples.finished),
            kl=kl_k1(outputs.old_logprobs, outputs.reference_logprobs),
            reward_parts=scores.parts,
            **outputs._asdict(),
        )

    def split(self, prompts: list[list[int]], experience: Experience, rollout: int) -> list[Minibatch]:
        """The packed minibatches of all epochs."""
        order = seeded("cpu", self.run.seed, self.global_rank, rollout, 1)
        parts = minibatches(
            prompts,
            experience,
            epochs=self.epochs,
            count=self.minibatches,
            row_length=self.row_length,
            pad_id=self.pad_id,
            generator=order,
        )
        return list(parts)

    def validation_step(self, prompts: list[dict[str, Any]], batch_idx: int) -> None:
        prompts = self.repeated(prompts)
        ids = [prompt["ids"] for prompt in prompts]
        with self.collecting(), self.clock.paused():
            samples = self.sample(ids, seeded(self.device, self.run.seed, self.global_rank, batch_idx, 2))
            experience = self.experience(samples, *self.assess(prompts, samples))
        self.add_responses(self._validation, prompts, experience)

    def add_responses(self, averages: Averages, prompts: list[dict[str, Any]], experience: Experience) -> None:
        """Adds the metrics of assessed responses, and their true quality if the data has a judge."""
        for name, (value, weight) in summary(experience).items():
            averages.add(name, value, weight)
        parts = experience.reward_parts.unbind(1) if experience.reward_parts is not None else ()
        for name, part in zip(as_reward(self.reward).weights, parts, strict=True):
            averages.add(f"{PART}{name}", masked_mean(part.nan_to_num(), ~part.isnan()), (~part.isnan()).sum())
        for name, share in self.judge_metrics(prompts, experience).items():
            averages.add(name, torch.tensor(share, device=self.device), len(experience.rewards))

    def metrics_to_log(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        metrics = super().metrics_to_log(means)
        if "score_square" not in metrics:
            return metrics
        metrics = with_spread(metrics)
        metrics.pop("kl_std")  # rollouts report its standard error instead
        return metrics

    def judge_metrics(self, prompts: list[dict[str, Any]], experience: Experience) -> dict[str, float]:
        """True quality of the responses, if the data has a judge."""
        return self.data.judge_responses(prompts, self.responses(experience), experience.finished.tolist())

    def responses(self, experience: Experience, count: int | None = None) -> list[list[int]]:
        """The sampled ids of the first `count` responses, or of all."""
        rows = zip(experience.response_ids[:count].cpu(), experience.mask[:count].cpu(), strict=True)
        return [ids[keep].tolist() for ids, keep in rows]

    def report(self, experience: Experience, prompts: list[dict[str, Any]]) -> None:
        """Logs the metrics of the rollout, and keeps part of it for histograms and the table of samples."""
        rollout = Averages()
        self.add_responses(rollout, prompts, experience)
        if self.samples_per_prompt > 1:
            equal = self.all_equal(experience.rewards, experience.reward_parts)
            rollout.add("equal_groups", equal.float().mean(), len(equal))
        metrics = with_spread(rollout.read(self.reduced))
        metrics["kl_stderr"] = metrics.pop("kl_std") / self.all_reduced(len(experience.kl)) ** 0.5
        metrics["beta"] = self.beta
        nowhere = {name for name in metrics if name.startswith(PART) and metrics[name].isnan()}
        self.log_now({f"rollout/{name}": float(value) for name, value in metrics.items() if name not in nowhere})
        self._rollout_began = True
        self.headline = {n: float(metrics[n]) for n in ("score", "gold", "kl", "entropy") if n in metrics}
        self._latest = {"rollout/scores": experience.rewards, "rollout/lengths": experience.mask.sum(1).float()}
        of_responses = {"score": experience.rewards, "kl": experience.kl.sum(1)}
        self.show(prompts, self.responses(experience, SHOWN), of_responses)

    def all_equal(self, rewards: Tensor, parts: Tensor | None) -> Tensor:
        """(groups,) bool: whether all rewards (N,) of a group are equal, so that it teaches nothing.

        parts: (N, K), as Experience.reward_parts.
        """
        groups = rewards.view(-1, self.samples_per_prompt)
        return (groups == groups[:, :1]).all(1)

    def self_check(self, experience: Experience, batch: Minibatch, rollout: int) -> None:
        """Checks, once per process, that the training forward matches the rollout's records and responses are valid.

        Raises SelfCheckError if not.
        """
        if self._checked:
            return
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            logprobs, _ = response_logprobs(
                self.policy, batch.packed, temperature=self.sampling.temperature, with_entropy=False
            )
        reference = batch.reference_logprobs if rollout == 0 else None
        exact = self.trainer.precision == "32-true"
        self.log_checks(
            check_first_forward(logprobs, batch.old_logprobs, reference, batch.mask, exact=exact),
            self.check_of_responses(experience.response_ids, experience.mask, experience.finished),
            check_score_positions(batch.packed.input_ids, batch.packed.last, batch.packed.response_ids, batch.mask),
        )
        self._checked = True

    def _due(self) -> bool:
        """Also at the first step of a rollout, whose ratio is checked."""
        began, self._rollout_began = self._rollout_began, False
        return super()._due() or began
