"""DPO: trains a policy directly on comparisons, without a reward model and without sampling."""

from typing import Any, Literal

import torch

from components.data.batches import PreferenceBatch
from components.functional.estimators import ranking_credit
from components.functional.losses import dpo
from components.stages.offline import Offline, answer_logprobs
from components.system.limits import Positive
from components.training.contract import Chart, LossOutput, Term


class DPO(Offline):
    """Direct preference optimization (Rafailov et al. 2023, eq. 7) on all pairs of a ranking; each prompt is read once.

    beta: strength of the constraint to the reference, per nat. variant, label_smoothing: see functional.losses.dpo.

    Metrics (train/ and val/):
    loss                     starts at ln 2 = 0.693 exactly (ipo: 1/(4 beta²), hinge: 1), which is checked
    accuracy                 share of pairs whose better answer has the higher implicit reward; ties count half
    margin                   mean β log π/π_ref of the better answer minus that of the worse one; rises
    chosen_reward, rejected_reward   the two terms of margin; it is common that both fall
    chosen_logprob           mean log p of better answers, nats per answer; a steep fall means beta is too small
    """

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
        beta: Positive = 0.1,
        variant: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid",
        label_smoothing: float = 0.0,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.beta, self.variant, self.label_smoothing = beta, variant, label_smoothing

    def compute_loss(self, batch: PreferenceBatch) -> LossOutput:
        policy = answer_logprobs(self.policy, batch)
        with torch.no_grad():
            reference = answer_logprobs(self.reference, batch)
        better, worse = batch.pairs.better, batch.pairs.worse
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

    def check_first_loss(self, output: LossOutput) -> None:
        """Checks that the loss is that of margins of 0."""
        zero = torch.zeros(1)
        at_zero = dpo(
            zero, zero, zero, zero, beta=self.beta, variant=self.variant, label_smoothing=self.label_smoothing
        )
        self.check_starts_at(float(at_zero.loss), output)
