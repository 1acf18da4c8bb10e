"""Pretraining: a causal language model on packed documents."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from components.data.batches import LMBatch
from components.models.heads import CausalLM
from components.models.shards import unsharded
from components.stages.language import bits_per_byte, continuations, language_loss
from components.stages.stage import Stage
from components.training.contract import Chart, LossOutput
from components.training.self_checks import check_initial_loss

SHOWN = 6  # continuations in the table of samples


class Pretrain(Stage):
    """Next-token prediction on every token of a document, its end token included.

    Metrics (train/ and val/):
    loss              mean −log p per token, nats; starts near ln V, falls fast, then slowly
    perplexity        exp(loss)
    bits_per_byte     loss / ln 2 / bytes per token; comparable across tokenizers
    accuracy          share of tokens that were the likeliest; if t tie for it, each counts 1/t
    bytes_per_token   of the text read; constant except for noise
    """

    model: CausalLM
    charts = (
        Chart("loss, nats per token", ("train/loss", "val/loss")),
        Chart("bits per byte", ("train/bits_per_byte", "val/bits_per_byte")),
        Chart("next token predicted correctly", ("train/accuracy", "val/accuracy")),
        Chart("gradient norm", ("train/grad_norm",)),
        Chart("learning rate", ("train/lr",)),
    )

    def __init__(self, model: Callable[[], CausalLM], **shared: Any) -> None:
        super().__init__(**shared)
        self.model_builder = model

    def configure_model(self) -> None:
        if not hasattr(self, "model"):
            self.adopt("model", self.model_builder())

    def compute_loss(self, batch: LMBatch) -> LossOutput:
        return language_loss(self.model, batch)

    def check_first_loss(self, output: LossOutput) -> None:
        if self.run.fresh:
            config = self.model.config
            self.log_checks(check_initial_loss(float(output.loss.detach()), config.vocab_size - len(config.unused_ids)))

    def metrics_to_log(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds what follows from the mean loss; a mean of per-batch perplexities would be a different quantity."""
        metrics = super().metrics_to_log(means)
        if "loss" not in metrics:
            return metrics
        rates = {
            "perplexity": metrics["loss"].exp(),
            "bits_per_byte": bits_per_byte(metrics["loss"], metrics["bytes_per_token"]),
        }
        return metrics | rates

    def sample_texts(self) -> list[dict[str, str]]:
        """Greedy continuations of held-out texts, for the table of samples."""
        data = self.data
        batch = next(iter(data.val_dataloader()), None) if len(data.val_examples) else None
        if batch is None:
            return []
        batch = self.transfer_batch_to_device(batch, self.device, 0)
        with unsharded(self.model):
            return continuations(self.model, batch, data.tokenizer, count=SHOWN)

    def exportable(self) -> CausalLM:
        return self.model
