"""KTO: trains a policy on answers that are labeled desirable or not, without comparisons and without sampling."""

import logging
from typing import Any

import torch
from torch import Tensor

from components.data.batches import UnpairedBatch
from components.functional.estimators import ranking_credit
from components.functional.losses import kto, kto_reference_point
from components.functional.masking import masked_mean
from components.stages.offline import Offline, answer_logprobs
from components.system.limits import Positive
from components.training.contract import Chart, LossOutput, Term

log = logging.getLogger(__name__)
ADVISED = (1.0, 1.5)  # λ_D n_D / (λ_U n_U): Ethayarajh et al. 2024, eq. 9


class KTO(Offline):
    """Kahneman–Tversky optimization (Ethayarajh et al. 2024, eq. 8): each answer is moved away from a reference point.

    beta: strength of the constraint to the reference, per nat. desirable_weight, undesirable_weight: λ_D and λ_U; a
    warning gives figures and advice if the labels are unbalanced for them. The reference point z₀ is the mean
    log π/π_ref, at least 0, of the mismatched answers that the data adds (UnpairedData says how), over the micro-batch
    of all processes; it has no gradient. With gradient accumulation each micro-batch has its own.

    Metrics (train/ and val/):
    loss                     starts at half the mean weight exactly (0.5 if both are 1), which is checked; falls
    margin                   desirable_reward − undesirable_reward; rises
    desirable_reward, undesirable_reward   mean β log π/π_ref of answers with that label; it is common that both fall
    desirable_gained         share of desirable answers that are likelier than under the reference; starts at 0.5 (ties
                             count half); healthy from 0.5 to 1
    undesirable_gained       the same of undesirable answers; healthy from 0 to 0.5
    kl                       mean log π/π_ref of mismatched answers, nats; starts at 0; z₀ is this, or 0 if it is
                             negative, which it often becomes, since answers to other prompts lose probability first
    desirable                share of desirable answers in the batch
    """

    frozen = ("reference",)
    charts = (
        Chart("loss", ("train/loss", "val/loss")),
        Chart("margin", ("train/margin", "val/margin")),
        Chart("implicit rewards", ("train/desirable_reward", "train/undesirable_reward")),
        Chart("desirable answers that gained probability", ("val/desirable_gained",), 0.5, 1.0),
        Chart("undesirable answers that gained probability", ("val/undesirable_gained",), 0.0, 0.5),
        Chart("log π/π_ref of mismatched answers, nats", ("train/kl", "val/kl")),
        Chart("desirable share of a batch", ("train/desirable",)),
        Chart("gradient norm", ("train/grad_norm",)),
    )

    def __init__(
        self,
        beta: Positive = 0.1,
        desirable_weight: Positive = 1.0,
        undesirable_weight: Positive = 1.0,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.beta = beta
        self.desirable_weight, self.undesirable_weight = desirable_weight, undesirable_weight

    def on_train_start(self) -> None:
        super().on_train_start()
        balance = self.data.balance
        advice = balance and balance_advice(*balance, self.desirable_weight, self.undesirable_weight)
        if advice and self.global_rank == 0:
            log.warning(advice)

    def compute_loss(self, batch: UnpairedBatch) -> LossOutput:
        policy = answer_logprobs(self.policy, batch)
        with torch.no_grad():
            reference = answer_logprobs(self.reference, batch)
        log_ratios, mismatched = (policy - reference).view(-1, 2).unbind(1)
        loss = kto(
            log_ratios,
            batch.desirable,
            kto_reference_point(mismatched, sum_over_ranks=self.all_reduced),
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        labels = {"desirable": batch.desirable, "undesirable": ~batch.desirable}
        figures = {"reward": self.beta * log_ratios.detach(), "gained": ranking_credit(log_ratios)}
        metrics = {"kl": mismatched.detach().mean(), "desirable": batch.desirable.float().mean()}
        weights: dict[str, Tensor | int] = {}
        for label, mask in labels.items():
            metrics |= {f"{label}_{name}": masked_mean(values, mask) for name, values in figures.items()}
            weights |= {f"{label}_{name}": mask.sum() for name in figures}
        return LossOutput((Term(loss, len(log_ratios)),), metrics, weights)

    def metrics_to_log(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        metrics = super().metrics_to_log(means)
        if {"desirable_reward", "undesirable_reward"} <= metrics.keys():
            metrics["margin"] = metrics["desirable_reward"] - metrics["undesirable_reward"]
        return metrics

    def check_first_loss(self, output: LossOutput) -> None:
        share = float(output.metrics["desirable"])
        weight = share * self.desirable_weight + (1 - share) * self.undesirable_weight
        self.check_starts_at(weight / 2, output)


def balance_advice(desirable: int, undesirable: int, desirable_weight: float, undesirable_weight: float) -> str | None:
    """What to change if these numbers of training records, times their weights, have a ratio outside of ADVISED by more
    than a rounding to tenths."""
    ratio = desirable_weight * desirable / (undesirable_weight * undesirable)
    low, high = ADVISED
    if low <= round(ratio, 1) <= high:
        return None
    name, weight = "undesirable_weight", undesirable_weight * ratio
    if ratio < low:
        name, weight = "desirable_weight", desirable_weight / ratio
    return (
        f"labels: {desirable} desirable training records of weight {desirable_weight:g} and {undesirable} undesirable "
        f"ones of weight {undesirable_weight:g} count {ratio:.2f} to 1, advised is {low:g} to {high:g} "
        f"(Ethayarajh et al. 2024, eq. 9). For equal shares set stage.{name}={weight:.3g}"
    )
