"""Supervised fine-tuning: a causal language model on dialogues, loss on what the assistant says."""

from typing import Any

from components.stages.pretrain import Pretrain
from components.system.limits import Positive
from components.training.contract import LossOutput


class SFT(Pretrain):
    """The pretraining loss on the assistant's tokens and its end of turn, which the data's mask selects.

    neftune_alpha: in training, uniform noise in ±alpha/√(L·D) on the embeddings of a dialogue of L tokens, D wide
    (Jain et al. 2023; they used 5 to 15); None: no noise.

    Metrics (train/ and val/):
    loss              mean −log p per assistant token, nats; a healthy val/loss falls, then rises once it overfits
    perplexity        exp(loss)
    bits_per_byte     loss / ln 2 / bytes per token of the answers
    accuracy          share of the assistant's tokens that were the likeliest; if t tie for it, each counts 1/t
    bytes_per_token   of the answers read
    """

    def __init__(self, neftune_alpha: Positive | None = None, **shared: Any) -> None:
        super().__init__(**shared)
        self.neftune_alpha = neftune_alpha

    def configure_model(self) -> None:
        super().configure_model()
        self.model.model.embedding_noise = self.neftune_alpha or 0.0

    def check_first_loss(self, output: LossOutput) -> None:
        """Nothing to check: it starts from trained weights, which can have any loss."""
