"""The reward model: a score per answer, learned from rankings."""

from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from components.data.batches import PreferenceBatch
from components.functional.losses import kwise_ranking
from components.functional.ranking import Pairs, pairs_of, ranking_metrics
from components.models.heads import ScalarModel
from components.stages.stage import Stage
from components.system.countdown import countdown
from components.system.limits import NonNegative
from components.training.contract import Chart, LossOutput, Term

FEWEST = 32  # demonstrations, before the standard error of their mean is trusted
TOLERANCE = 0.05  # of that standard error: a score off by this much changes a win probability by at most 0.0125


class RewardModel(Stage):
    """K-wise ranking loss: mean −log σ(r_better − r_worse) over a prompt's pairs, then over prompts.

    With two answers per prompt it is the pairwise Bradley–Terry loss. Source: Ouyang et al. 2022, eq. 1.
    margin, label_smoothing, centering: see functional.losses.kwise_ranking. The score is read at an answer's last real
    token. Pair metrics are means over pairs, not over prompts as the loss is; functional.ranking defines those of val/,
    for the evaluation too.
    Metrics (train/ and val/):
    loss                      starts near ln 2 = 0.693; below 0.35 on a judge of your own is strong
    accuracy                  share of pairs ranked correctly, ties count half; humans agree on about 0.73
    margin                    mean r_better − r_worse
    val/ece                   expected calibration error of σ(|margin|), bins of 0.1; healthy below 0.1
    val/accuracy_stderr       standard error of val/accuracy, over pairs
    val/score_length_correlation   Pearson correlation of score and tokens; healthy in ±0.5; near ±1 the model learned
                                   length alone
    val/accuracy_length_matched    accuracy on pairs whose lengths differ by less than 10%
    val/longer_wins                accuracy of "the longer answer wins", the baseline to beat
    """

    model: ScalarModel
    charts = (
        Chart("loss", ("train/loss", "val/loss")),
        Chart("pairs ranked correctly", ("train/accuracy", "val/accuracy")),
        Chart("accuracy against length alone", ("val/accuracy", "val/accuracy_length_matched", "val/longer_wins")),
        Chart("calibration error", ("val/ece",), 0.0, 0.1),
        Chart("correlation of score and length", ("val/score_length_correlation",), -0.5, 0.5),
        Chart("margin", ("train/margin", "val/margin")),
        Chart("gradient norm", ("train/grad_norm",)),
    )

    def __init__(
        self,
        model: Callable[[], ScalarModel],
        margin: float = 0.0,
        label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0,
        centering: NonNegative = 0.0,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.model_builder = model
        self.margin, self.label_smoothing, self.centering = margin, label_smoothing, centering
        self.demonstration_score = 0.0
        self._held_out: list[tuple[Tensor, ...]] = []  # by batch: scores, lengths, then the fields of Pairs
        self._latest: dict[str, Tensor] = {}

    def configure_model(self) -> None:
        if not hasattr(self, "model"):
            self.adopt("model", self.model_builder())

    def scores(self, batch: PreferenceBatch) -> Tensor:
        """(N,) score of every answer in the batch, at its last token."""
        return self.model(batch.input_ids, batch.layout).flatten()[batch.last]

    def compute_loss(self, batch: PreferenceBatch) -> LossOutput:
        return self.ranking_loss(self.scores(batch), batch)

    def ranking_loss(self, scores: Tensor, batch: PreferenceBatch) -> LossOutput:
        """The loss of a batch whose answers have these scores (N,), with metrics over its pairs."""
        loss, prompts = kwise_ranking(
            scores,
            batch.pairs,
            margin=self.margin,
            label_smoothing=self.label_smoothing,
            centering=self.centering,
        )
        pairs = pairs_of(scores.detach(), batch.lengths, batch.finished, batch.pairs)
        count = pairs.margins.numel()
        metrics = {"accuracy": pairs.credit.sum() / max(count, 1), "margin": pairs.margins.sum() / max(count, 1)}
        return LossOutput((Term(loss, int(prompts)),), metrics, dict.fromkeys(metrics, count))

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        scores = self.scores(batch)
        self.note(self._validation, self.ranking_loss(scores, batch))
        pairs = pairs_of(scores, batch.lengths, batch.finished, batch.pairs)
        self._held_out.append((scores, batch.lengths.float(), *pairs))

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        fields = [self.gathered(torch.cat(field)) for field in zip(*self._held_out, strict=True)]
        self._held_out = []
        if not fields or not fields[2].numel():
            return
        scores, lengths, pairs = fields[0], fields[1], Pairs(*fields[2:])
        found = ranking_metrics(pairs, scores, lengths)
        metrics: dict[str, float | None] = found._asdict()
        metrics["accuracy_stderr"] = (found.accuracy * (1 - found.accuracy) / pairs.margins.numel()) ** 0.5
        more = {name: value for name, value in metrics.items() if name not in ("accuracy", "margin")}  # logged above
        # already the same on all processes
        self.log_dict({f"val/{n}": value for n, value in more.items() if value is not None}, sync_dist=True)
        self._latest = {"val/scores": scores, "val/lengths": lengths}

    @torch.no_grad()
    def on_fit_end(self) -> None:
        """Shifts the score to a mean of 0 on demonstrations, without dropout, up to the error of `_mean_score`.

        Source: Ouyang et al. 2022, section 3.5.

        Not in on_train_end, which a run resumed from its last step never reaches.
        """
        data = self.data
        if not data.num_demonstrations:
            return
        was_training = self.training
        self.eval()
        with self.trainer.precision_plugin.forward_context():
            self.demonstration_score = self._mean_score(data.demonstration_batches(), data.num_demonstrations)
        self.train(was_training)
        self.model.rescale_(scale=1.0, shift=-self.demonstration_score)

    def _mean_score(self, batches: Iterable[PreferenceBatch], limit: int) -> float:
        """Mean score of the answers in batches: at least FEWEST, until its standard error is at most TOLERANCE."""
        shown = self.trainer.progress_bar_callback is not None
        parts: list[Tensor] = []
        for batch in countdown(batches, "demonstrations", limit, count=lambda batch: len(batch.ranks), shown=shown):
            parts.append(self.scores(self._on_device(batch)).cpu().double())
            scores = torch.cat(parts)
            if len(scores) >= FEWEST:
                error = self.reduced(scores.std().float() / len(scores) ** 0.5, "max")  # all processes stop together
                if error <= TOLERANCE:
                    break
        return float(torch.cat(parts).mean())

    def _on_device(self, batch: PreferenceBatch) -> PreferenceBatch:
        return self.transfer_batch_to_device(batch, self.device, 0)

    def histograms(self) -> dict[str, Tensor]:
        """Scores and lengths of the held-out answers at the latest validation."""
        return self._latest

    def exportable(self) -> ScalarModel:
        return self.model
