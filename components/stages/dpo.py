"""DPO: trains a policy directly on comparisons, without a reward model and without sampling."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from components.data.batches import PreferenceBatch
from components.functional.estimators import ranking_credit
from components.functional.losses import dpo, ranking_pairs
from components.functional.output_layer import linear_logprobs
from components.models.heads import CausalLM
from components.stages.stage import Stage
from components.system.limits import Positive
from components.training.contract import ALONE, Chart, LossOutput, RunContext, Term
from components.training.self_checks import SelfCheckError


class DPO(Stage):
    """Direct preference optimization (Rafailov et al. 2023, eq. 7) on all pairs of a ranking; each prompt is read once.

    beta: strength of the constraint to the reference, per nat. variant, label_smoothing: see functional.losses.dpo.

    Metrics (train/ and val/):
    loss                     starts at ln 2 = 0.693 exactly (ipo: 1/(4 beta²), hinge: 1), which is checked
    accuracy                 share of pairs whose better answer has the higher implicit reward; ties count half
    margin                   mean β log π/π_ref of the better answer minus that of the worse one; rises
    chosen_reward, rejected_reward   the two terms of margin; it is common that both fall
    chosen_logprob           mean log p of better answers, nats per answer; a steep fall means beta is too small
    """

    policy: CausalLM
    reference: CausalLM
    frozen = ("reference",)
    charts = (
        Chart("loss", ("train/loss", "val/loss")),
        Chart("pairs ranked correctly", ("train/accuracy", "val/accuracy")),
        Chart("margin", ("train/margin", "val/margin")),
        Chart("implicit rewards", ("train/chosen_reward", "train/rejected_reward")),
        Chart("log p of better answers, nats", ("train/chosen_logprob", "val/chosen_logprob")),
        Chart("gradient norm", ("train/grad_norm",)),
    )

    def __init__(
        self,
        policy: Callable[[], CausalLM],
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., float],
        beta: Positive,
        variant: Literal["sigmoid", "ipo", "hinge", "robust"],
        label_smoothing: float = 0.0,
        run: RunContext = ALONE,
    ) -> None:
        super().__init__(optimizer, schedule, run)
        self.policy_builder = policy
        self.beta, self.variant, self.label_smoothing = beta, variant, label_smoothing

    def configure_model(self) -> None:
        if not hasattr(self, "policy"):
            self.adopt("policy", self.policy_builder())
            self.adopt("reference", self.as_before_training(self.policy, self.policy_builder))

    def compute_loss(self, batch: PreferenceBatch) -> LossOutput:
        policy = answer_logprobs(self.policy, batch)
        with torch.no_grad():
            reference = answer_logprobs(self.reference, batch)
        better, worse, _ = ranking_pairs(batch.ranks, batch.groups)
        result = dpo(
            policy[better],
            policy[worse],
            reference[better],
            reference[worse],
            beta=self.beta,
            variant=self.variant,
            label_smoothing=self.label_smoothing,
        )
        margins = result.chosen_rewards - result.rejected_rewards
        pairs = max(margins.numel(), 1)
        metrics = {
            "accuracy": ranking_credit(margins).sum() / pairs,
            "margin": margins.sum() / pairs,
            "chosen_reward": result.chosen_rewards.sum() / pairs,
            "rejected_reward": result.rejected_rewards.sum() / pairs,
            "chosen_logprob": policy[better].detach().sum() / pairs,
        }
        return LossOutput((Term(result.loss, margins.numel()),), metrics)

    def check_first_loss(self, loss: float) -> None:
        """Checks that the loss is that of margins of 0, since policy and reference are equal before any update.

        Raises SelfCheckError if not.
        """
        zero = torch.zeros(1)
        at_zero = dpo(
            zero, zero, zero, zero, beta=self.beta, variant=self.variant, label_smoothing=self.label_smoothing
        )
        expected = float(at_zero.loss)
        if not math.isclose(loss, expected, rel_tol=1e-4 if self.trainer.precision == "32-true" else 2e-2):
            raise SelfCheckError(
                f"self-check: the first loss is {loss:.6f}, expected {expected:.6f}: policy and reference differ "
                "before any update. Do both load the same artifact (artifacts.sft)?"
            )
        self.log_checks(f"first loss {loss:.6f}: policy = reference before the first update")

    def exportable(self) -> CausalLM:
        return self.policy

    def flops_per_token(self) -> float:
        return super().flops_per_token() * 4 / 3  # plus the reference's forward pass


def answer_logprobs(model: CausalLM, batch: PreferenceBatch) -> Tensor:
    """(N,) Σ log p, in nats, of every answer's tokens after its prompt, the end token included.

    Only the hidden states that predict those tokens pass through the head.
    """
    steps = torch.arange(int(batch.lengths.max()), device=batch.last.device)
    mask = steps < batch.lengths[:, None]
    indices = (batch.last - batch.lengths + 1)[:, None] + steps
    sources = torch.where(steps == 0, batch.prompt_last[:, None], indices - 1)
    hidden = model.hidden(batch.input_ids, batch.layout).flatten(0, 1)
    targets = batch.input_ids.flatten()[indices[mask]]
    logprobs, _ = model.through_head(
        linear_logprobs, hidden[sources[mask]], targets, temperature=1.0, with_entropy=False
    )
    return logprobs.new_zeros(mask.shape).masked_scatter(mask, logprobs).sum(1)
