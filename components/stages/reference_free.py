"""What SimPO and ORPO share: a loss of the mean log-probabilities of two answers, without a reference model."""

from torch import Tensor

from components.data.batches import PreferenceBatch
from components.functional.estimators import ranking_credit
from components.stages.offline import Offline, answer_logprobs
from components.training.contract import Chart, LossOutput, Term


class ReferenceFree(Offline):
    """Base of stages that train on all pairs of a ranking by m, an answer's mean log p per token, its end included.

    Metrics (train/ and val/):
    loss                     mean over pairs, see the stage's equation
    accuracy                 share of pairs whose better answer has the higher m; ties count half; rises
    margin                   mean m of the better answer minus that of the worse one, nats per token; rises
    chosen_logprob, rejected_logprob   the two terms of margin; a steep fall of both is degeneration, since nothing else
                             holds the policy near its start
    """

    charts = (
        Chart("loss", ("train/loss", "val/loss")),
        Chart("pairs ranked correctly", ("train/accuracy", "val/accuracy")),
        Chart("margin, nats per token", ("train/margin", "val/margin")),
        Chart("log p per token, nats", ("val/chosen_logprob", "val/rejected_logprob")),
        Chart("gradient norm", ("train/grad_norm",)),
    )

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """The mean loss of pairs; chosen, rejected: (P,) m of each."""
        raise NotImplementedError

    def compute_loss(self, batch: PreferenceBatch) -> LossOutput:
        means = answer_logprobs(self.policy, batch) / batch.lengths
        better, worse = batch.pairs.better, batch.pairs.worse
        chosen, rejected = means[better].detach(), means[worse].detach()
        pairs = max(len(better), 1)
        metrics = {
            "accuracy": ranking_credit(chosen - rejected).sum() / pairs,
            "margin": (chosen - rejected).sum() / pairs,
            "chosen_logprob": chosen.sum() / pairs,
            "rejected_logprob": rejected.sum() / pairs,
        }
        return LossOutput((Term(self.pair_loss(means[better], means[worse]), len(better)),), metrics)
