"""What the stages that train a policy on given answers share: the networks, and log-probabilities of answers."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from components.data.batches import PreferenceBatch, UnpairedBatch
from components.functional.output_layer import linear_logprobs
from components.models.heads import CausalLM
from components.stages.stage import Stage
from components.training.contract import LossOutput
from components.training.self_checks import SelfCheckError


class Offline(Stage):
    """Base of DPO and KTO: a policy, and the frozen reference that it starts from, if `frozen` names one."""

    policy: CausalLM
    reference: CausalLM

    def __init__(self, policy: Callable[[], CausalLM], **shared: Any) -> None:
        super().__init__(**shared)
        self.policy_builder = policy

    def configure_model(self) -> None:
        if not hasattr(self, "policy"):
            self.adopt("policy", self.policy_builder())
            if self.frozen:
                self.adopt("reference", self.as_before_training(self.policy, self.policy_builder))

    def check_starts_at(self, expected: float, output: LossOutput) -> None:
        """Checks that the first loss is that of a policy equal to its reference. Raises SelfCheckError if not."""
        loss = float(output.loss.detach())
        if not math.isclose(loss, expected, rel_tol=1e-4 if self.trainer.precision == "32-true" else 2e-2):
            raise SelfCheckError(
                f"self-check: the first loss is {loss:.6f}, expected {expected:.6f}: policy and reference differ "
                "before any update. Do both load the same artifact (artifacts.sft)?"
            )
        self.log_checks(f"first loss {loss:.6f}: policy = reference before the first update")

    def exportable(self) -> CausalLM:
        return self.policy

    def flops_per_token(self) -> float:
        networks = self.networks()
        return super().flops_per_token() + sum(networks[name].flops_per_token.forward for name in self.frozen)


def answer_logprobs(model: CausalLM, batch: PreferenceBatch | UnpairedBatch) -> Tensor:
    """(N,) Σ log p, in nats, of every answer's tokens after its prompt, the end token included.

    Only the hidden states that predict those tokens pass through the head.
    """
    answers = batch.answers
    hidden = model.hidden(batch.input_ids, batch.layout).flatten(0, 1)
    targets = batch.input_ids.flatten()[answers.indices]
    logprobs, _ = model.through_head(
        linear_logprobs,
        hidden[answers.sources],
        targets,
        temperature=1.0,
        with_entropy=False,
        compiled=model.compiles_loss,
    )
    by_answer = logprobs.new_zeros(answers.mask.numel()).index_copy(0, answers.places, logprobs)
    return by_answer.view(answers.mask.shape).sum(1)
