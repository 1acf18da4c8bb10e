"""What every on-policy stage shares: collecting experience with a policy, its reference and a reward model."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from components.functional.logprobs import kl_k1
from components.generation.generate import Sampling, generate, seeded
from components.generation.responses import response_logprobs, response_scores, summary, with_spread
from components.generation.rollout import Experience, minibatches, packed
from components.models.heads import CausalLM, ScalarModel
from components.models.shards import unsharded
from components.stages.stage import Stage
from components.training.averages import Averages
from components.training.clock import Clock
from components.training.contract import Chart
from components.training.self_checks import check_first_forward, check_responses, check_score_places

SHOWN = 8  # responses in the table of samples


class OnPolicy(Stage):
    """Draws responses, scores them, and turns them into minibatches. A subclass gives `advantages` and compute_loss.

    missing_end_score replaces the score of a response that did not end by itself within max_new_tokens.
    score_scale multiplies the reward model's scores. None: scaled once, on the first rollout, to unit deviation, so
    that beta and learning rates mean the same for every reward model; the scale is a buffer and saved.

    rollout/ (before any update on it; val/ has the same on held-out prompts)
    score                 mean score, missing ends included; rises, then levels off
    score_std             within a rollout; near 0 the scores saturate and there is nothing left to learn
    kl                    mean over responses of Σ log π/π_ref, nats; 0 at first, stays below ~10; negative is a bug
    kl_stderr             standard error of kl over the rollout's responses
    kl_k3                 the same by the k3 estimator, never negative
    entropy               mean nats per token; falls slowly, a collapse to ~0 early is too large a step
    length, finished      tokens per response; share that ended by themselves, healthy 0.9 … 1
    equal_groups          share of prompts whose responses (if several) all got one score: they teach nothing; healthy
                          below 0.5
    seconds_*             mean over processes: of generate, policy, reference, score, value (PPO), update (all of the
                          rollout before), other
    gold, correct         the built-in world's judge on the same responses: true quality. Score up and gold down is
                          over-optimisation
    wrong_name            share that names somebody else than was asked about, by the same judge
    beta                  the KL coefficient in force
    """

    policy: CausalLM
    reference: CausalLM
    reward: ScalarModel
    beta: Tensor
    score_scale: Tensor
    frozen = ("reference", "reward")
    charts: tuple[Chart, ...] = (
        Chart("score", ("rollout/score", "val/score")),
        Chart("true quality", ("rollout/gold", "rollout/correct", "rollout/wrong_name", "val/gold")),
        Chart("KL to the reference, nats per response", ("rollout/kl",), 0.0, 10.0),
        Chart("entropy, nats per token", ("rollout/entropy", "val/entropy")),
        Chart("spread of scores", ("rollout/score_std",)),
        Chart("length, tokens", ("rollout/length", "val/length")),
        Chart("ended by themselves", ("rollout/finished",), 0.9, 1.0),
    )
    reward_is_adapter = False  # the reward model's artifact holds adapters of the trunk that the policy starts from
    readers = 3  # models that read every response: policy, reference, reward model

    def __init__(
        self,
        policy: Callable[[], CausalLM],
        reward: Callable[[], ScalarModel],
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., float],
        sampling: Sampling,
        stop_ids: Sequence[int],
        pad_id: int,
        beta: Annotated[float, Field(ge=0)],
        epochs: Annotated[int, Field(ge=1)],
        minibatches: Annotated[int, Field(ge=1)],
        missing_end_score: float,
        samples_per_prompt: int = 1,
        score_scale: float | None = None,
    ) -> None:
        super().__init__(optimizer, schedule)
        if sampling.temperature <= 0 or sampling.top_k or sampling.top_p < 1:
            raise ValueError(
                "stage.sampling: rollouts must be drawn from the policy itself (temperature > 0, top_k 0, top_p 1), "
                f"got {sampling}; a filtered draw is not the distribution that is trained"
            )
        self.policy_builder, self.reward_builder = policy, reward
        self.sampling, self.stop_ids, self.pad_id = sampling, tuple(stop_ids), pad_id
        self.epochs, self.minibatches, self.samples_per_prompt = epochs, minibatches, samples_per_prompt
        self.missing_end_score = missing_end_score
        self.register_buffer("beta", torch.tensor(float(beta)))
        if score_scale is not None and score_scale <= 0:
            raise ValueError(f"stage.score_scale: expected a factor above 0, or null to measure it, got {score_scale}")
        self.register_buffer("score_scale", torch.tensor(score_scale or 0.0))  # 0: not measured yet
        self.spent: Counter[str] = Counter()  # of rollouts, for whoever keeps the budget
        self.rollout_is_spent = False
        self.clock = Clock()
        self._checked = False
        self._rollout_began = False
        self.headline: dict[str, float] = {}  # figures of the latest rollout for the progress line
        self._latest: Experience = {}
        self._shown: list[tuple[list[int], list[int], float, float]] = []

    def configure_model(self) -> None:
        if not hasattr(self, "policy"):
            self.adopt("policy", self.policy_builder())
            self.adopt("reference", self.as_before_training(self.policy, self.policy_builder))
            shared = {"trunk": self.policy.model} if self.reward_is_adapter else {}
            self.adopt("reward", self.reward_builder(**shared))

    def advantages(self, known: Experience) -> Experience:
        """What the loss needs beside log-probabilities, from rewards (N,), kl (N, R) and whatever `assess` added."""
        raise NotImplementedError

    def collect(self, prompts: list[dict[str, Any]], rollout: int) -> list[Experience]:
        """The algorithm box: draw responses, score them, estimate advantages, return minibatches to learn from.

        Rollout n draws from (seed, rank, n) alone, so resuming needs only n.
        """
        self.clock.mark("update")
        self.rollout_is_spent = False
        prompts = [prompt for prompt in prompts for _ in range(self.samples_per_prompt)]
        ids = [prompt["ids"] for prompt in prompts]
        with self.collecting():
            known = self.assess(ids, self.draw(ids, seeded(self.device, self.seed, self.global_rank, rollout)))
            self.count_spent(ids, known["mask"])
            self.calibrate(known)
            known["rewards"] = self.final_scores(known)
            known["kl"] = kl_k1(known["old_logprobs"], known["reference_logprobs"])
            self.report(known, prompts)
            learned_from = self.advantages(known)
        keep = ("response_ids", "mask", "old_logprobs", "reference_logprobs")
        parts = self.split(ids, {**{name: known[name] for name in keep}, **learned_from}, rollout)
        self.self_check(known, parts[0], rollout)
        self.clock.mark("other")
        seconds = self.clock.read()
        means = self.all_reduced(torch.tensor(list(seconds.values()))) / self.trainer.world_size
        self.log_now({f"rollout/seconds_{name}": float(mean) for name, mean in zip(seconds, means, strict=True)})
        return parts

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Rollouts run without gradients or dropout, under the strategy's own precision."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad(), unsharded(self), self.trainer.precision_plugin.forward_context():
                yield
        finally:
            self.train(was_training)

    def draw(self, prompts: list[list[int]], generator: torch.Generator) -> Experience:
        """response_ids, mask (N, R) and finished (N,): a response to each; samples_per_prompt neighbours are equal."""
        samples = generate(
            self.policy,
            prompts[:: self.samples_per_prompt],
            self.sampling,
            stop_ids=self.stop_ids,
            pad_id=self.pad_id,
            generator=generator,
            samples_per_prompt=self.samples_per_prompt,
        )
        self.clock.mark("generate")
        return {"response_ids": samples.ids, "mask": samples.mask, "finished": samples.finished}

    def assess(self, prompts: list[list[int]], drawn: Experience) -> Experience:
        """`drawn` with what `assess_part` finds, computed in as many parts as there are minibatches."""
        parts = []
        for rows in torch.arange(len(prompts)).tensor_split(min(self.minibatches, len(prompts))):
            part = {name: tensor[rows.to(tensor.device)] for name, tensor in drawn.items()}
            part = packed([prompts[i] for i in rows.tolist()], part, row_length=self.row_length, pad_id=self.pad_id)
            parts.append(self.assess_part(part))
        return {**drawn, **{name: torch.cat([part[name] for part in parts]) for name in parts[0]}}

    def assess_part(self, part: Experience) -> Experience:
        """score (N,) unscaled; old_logprobs, reference_logprobs, entropy (N, R).

        Log-probabilities come from the training forward on packed rows, so the first ratio is 1.
        """
        temperature = self.sampling.temperature
        logprobs, entropies = response_logprobs(self.policy, part, temperature=temperature)
        self.clock.mark("policy")
        reference, _ = response_logprobs(self.reference, part, temperature=temperature, with_entropy=False)
        self.clock.mark("reference")
        score = response_scores(self.reward, part)
        self.clock.mark("score")
        return {"score": score, "old_logprobs": logprobs, "reference_logprobs": reference, "entropy": entropies}

    def calibrate(self, known: Experience) -> None:
        """On the first rollout: measures the scale that gives scores unit deviation over all processes."""
        if self.score_scale > 0:
            return
        score = known["score"].double()
        sums = score.new_tensor([len(score), score.sum(), score @ score])
        count, total, squares = self.sum_over_ranks(sums)
        deviation = float((squares / count - (total / count) ** 2).clamp_min(0).sqrt())
        if deviation < 1e-6:
            raise ValueError(
                "the reward model gives every response the same score; nothing can be learned from it. "
                "Train it again: python train.py stage=rm"
            )
        self.score_scale.fill_(1 / deviation)

    def final_scores(self, known: Experience) -> Tensor:
        """(N,) scaled scores, missing_end_score where a response did not end by itself."""
        scale = self.score_scale if self.score_scale > 0 else 1.0
        return torch.where(known["finished"], known["score"] * scale, self.missing_end_score)

    def split(self, prompts: list[list[int]], known: Experience, rollout: int) -> list[Experience]:
        """The packed minibatches of all epochs."""
        order = seeded("cpu", self.seed, self.global_rank, rollout, 1)
        parts = minibatches(
            prompts,
            known,
            epochs=self.epochs,
            count=self.minibatches,
            row_length=self.row_length,
            pad_id=self.pad_id,
            generator=order,
        )
        return list(parts)

    @property
    def row_length(self) -> int:
        return self.policy.config.longest

    def validation_step(self, prompts: list[dict[str, Any]], batch_idx: int) -> None:
        prompts = [prompt for prompt in prompts for _ in range(self.samples_per_prompt)]
        ids = [prompt["ids"] for prompt in prompts]
        with self.collecting(), self.clock.paused():
            known = self.assess(ids, self.draw(ids, seeded(self.device, self.seed, self.global_rank, batch_idx, 2)))
            known["rewards"] = self.final_scores(known)
            known["kl"] = kl_k1(known["old_logprobs"], known["reference_logprobs"])
        self.add_responses(self._validation, prompts, known)

    def add_responses(self, averages: Averages, prompts: list[dict[str, Any]], known: Experience) -> None:
        """Adds the figures of assessed responses, and their true quality where the data knows it."""
        for name, (value, weight) in summary(known).items():
            averages.add(name, value, weight)
        for name, share in self.judged(prompts, known).items():
            averages.add(name, torch.tensor(share, device=self.device), len(known["rewards"]))

    def finished(self, figures: dict[str, Tensor]) -> dict[str, Tensor]:
        found = super().finished(figures)
        if "score_square" not in found:
            return found
        found = with_spread(found)
        found.pop("kl_std")  # a rollout has its standard error
        return found

    def count_spent(self, prompts: list[list[int]], mask: Tensor) -> None:
        """What a rollout costs: a forward pass to draw, and one of every model that reads. A prompt counts once."""
        drawn = int(mask.sum())
        read = drawn + sum(map(len, prompts[:: self.samples_per_prompt]))
        forward = super().flops_per_token() / 3  # backward is twice a forward pass
        self.spent.update(generated_tokens=drawn, flops=read * forward * (1 + self.readers))  # type: ignore[call-overload]

    def judged(self, prompts: list[dict[str, Any]], known: Experience) -> dict[str, float]:
        """True quality of the responses, where the data knows it."""
        judge = getattr(self.data, "judged", None)
        return judge(prompts, self.responses(known), known["finished"].tolist()) if judge else {}

    def responses(self, known: Experience, count: int | None = None) -> list[list[int]]:
        """The drawn ids of the first `count` responses, of all without one."""
        rows = zip(known["response_ids"][:count].cpu(), known["mask"][:count].cpu(), strict=True)
        return [ids[keep].tolist() for ids, keep in rows]

    def report(self, known: Experience, prompts: list[dict[str, Any]]) -> None:
        """Logs the rollout as it was drawn, and keeps some of it for histograms and the table of samples."""
        rollout, groups = Averages(), known["rewards"].view(-1, self.samples_per_prompt)
        self.add_responses(rollout, prompts, known)
        if self.samples_per_prompt > 1:
            rollout.add("equal_groups", (groups == groups[:, :1]).all(1).float().mean(), len(groups))
        metrics = with_spread(rollout.read(self.reduced))
        metrics["kl_stderr"] = metrics.pop("kl_std") / self.all_reduced(len(known["kl"])) ** 0.5
        metrics["beta"] = self.beta
        self.log_now({f"rollout/{name}": float(value) for name, value in metrics.items()})
        self._rollout_began = True
        self.headline = {n: float(metrics[n]) for n in ("score", "gold", "kl", "entropy") if n in metrics}
        self._latest = {"rollout/scores": known["rewards"], "rollout/lengths": known["mask"].sum(1).float()}
        asked = [prompt["ids"] for prompt in prompts[:SHOWN]]
        told = (known["rewards"][:SHOWN].tolist(), known["kl"][:SHOWN].sum(1).tolist())
        self._shown = list(zip(asked, self.responses(known, SHOWN), *told, strict=True))

    def histograms(self) -> dict[str, Tensor]:
        """Scores and lengths of the latest rollout, once, of all processes: to be called on all of them."""
        latest, self._latest = self._latest, {}
        return {name: self.gathered(values) for name, values in latest.items()}

    def sample_texts(self) -> list[dict[str, Any]]:
        """The first responses of the latest rollout, for the table of samples."""
        decode = self.data.tokenizer.decode
        return [
            {"prompt": decode(prompt), "response": decode(response, skip_special=False), "score": score, "kl": kl}
            for prompt, response, score, kl in self._shown
        ]

    def self_check(self, known: Experience, batch: Experience, rollout: int) -> None:
        """Once per process: the training forward agrees with what the rollout recorded, and responses are in order."""
        if self._checked:
            return
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            logprobs, _ = response_logprobs(
                self.policy, batch, temperature=self.sampling.temperature, with_entropy=False
            )
        reference = batch["reference_logprobs"] if rollout == 0 else None
        exact = self.trainer.precision == "32-true"
        self.tell(
            check_first_forward(logprobs, batch["old_logprobs"], reference, batch["mask"], exact=exact),
            check_responses(
                known["response_ids"],
                known["mask"],
                known["finished"],
                vocab_size=self.policy.config.vocab_size,
                unused_ids=self.policy.config.unused_ids,
                stop_ids=self.stop_ids,
            ),
            check_score_places(batch["input_ids"], batch["last"], batch["response_ids"], batch["mask"]),
        )
        self._checked = True

    def _due(self) -> bool:
        """Also at the first step of a rollout, whose ratio is watched."""
        began, self._rollout_began = self._rollout_began, False
        return super()._due() or began

    def sum_over_ranks(self, total: Tensor) -> Tensor:
        return self.all_reduced(total).to(total.dtype)

    def exportable(self) -> CausalLM:
        return self.policy
