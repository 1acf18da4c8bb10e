"""The reward model: a score per answer, learned from rankings."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric, PearsonCorrCoef
from torchmetrics.classification import BinaryCalibrationError

from components.data.batches import PreferenceBatch
from components.functional.estimators import ranking_credit
from components.functional.losses import kwise_ranking, ranking_pairs
from components.models.heads import ScalarModel
from components.stages.stage import Chart, LossOutput, Stage

LENGTH_MATCHED = 0.1  # two answers are of matched length when they differ by less than this share


class RewardModel(Stage):
    """K-wise ranking loss: mean −log σ(r_better − r_worse) over a prompt's pairs, then over prompts.

    With two answers per prompt it is the pairwise Bradley–Terry loss. Source: Ouyang et al. 2022, eq. 1.
    The score is read at an answer's last real token. Metrics (train/ and val/):
    loss                      starts near ln 2 = 0.693; below 0.35 on one's own judge is strong
    accuracy                  share of pairs ranked rightly, ties count half; humans agree on about 0.73
    margin                    mean r_better − r_worse
    val/ece                   expected calibration error of σ(|margin|), 10 bins; healthy below 0.1
    val/accuracy_stderr       standard error of val/accuracy by pairs
    val/score_length_correlation   Pearson of score and tokens; healthy within ±0.5, near ±1 it learned length alone
    val/accuracy_length_matched    accuracy on pairs whose lengths differ by under 10%
    val/longer_wins                accuracy of "the longer answer wins", the baseline to beat
    """

    model: ScalarModel
    charts = (
        Chart("loss", ("train/loss", "val/loss")),
        Chart("pairs ranked rightly", ("train/accuracy", "val/accuracy")),
        Chart("against length alone", ("val/accuracy", "val/accuracy_length_matched", "val/longer_wins")),
        Chart("calibration error", ("val/ece",), 0.0, 0.1),
        Chart("correlation of score and length", ("val/score_length_correlation",), -0.5, 0.5),
        Chart("margin", ("train/margin", "val/margin")),
        Chart("gradient norm", ("train/grad_norm",)),
    )

    def __init__(
        self,
        model: Callable[[], ScalarModel],
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., float],
    ) -> None:
        super().__init__(optimizer, schedule)
        self.model_builder = model
        self.calibration = BinaryCalibrationError(n_bins=10, norm="l1")
        self.length_correlation = PearsonCorrCoef()
        self.matched = MeanMetric()
        self.longer = MeanMetric()
        self.right = MeanMetric()
        self.demonstration_score = 0.0
        self._seen: dict[str, list[Tensor]] = {"val/scores": [], "val/lengths": []}
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
        loss, prompts = kwise_ranking(scores, batch.ranks, batch.groups)
        better, worse, _ = ranking_pairs(batch.ranks, batch.groups)
        margins = (scores[better] - scores[worse]).detach()
        pairs = max(margins.numel(), 1)
        metrics = {"accuracy": ranking_credit(margins).sum() / pairs, "margin": margins.sum() / pairs}
        return LossOutput(loss, metrics, int(prompts))

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        scores = self.scores(batch)
        self.record("val", self.ranking_loss(scores, batch))
        better, worse, _ = ranking_pairs(batch.ranks, batch.groups)
        if not better.numel():
            return
        margins = scores[better] - scores[worse]
        lengths = batch.lengths.float()
        self._seen["val/scores"].append(scores)
        self._seen["val/lengths"].append(lengths)
        self.calibration.update(torch.sigmoid(margins.abs()), (margins > 0).int())
        self.length_correlation.update(scores, lengths)
        self.right.update(ranking_credit(margins))
        gap = lengths[better] - lengths[worse]
        self.longer.update(ranking_credit(gap))
        matched = gap.abs() < LENGTH_MATCHED * torch.maximum(lengths[better], lengths[worse])
        self.matched.update(ranking_credit(margins), weight=matched.float())

    def on_validation_epoch_end(self) -> None:
        if not self.right.update_count:
            return
        accuracy, pairs = self.right.compute(), self.all_reduced(self.right.weight)
        summary = {
            "val/ece": self.calibration.compute(),
            "val/score_length_correlation": self.length_correlation.compute(),
            "val/accuracy_stderr": (accuracy * (1 - accuracy) / pairs).sqrt(),
            "val/longer_wins": self.longer.compute(),
        }
        matched = self.matched.compute()  # on every rank, also where there was no such pair: it is a collective
        if not matched.isnan():
            summary["val/accuracy_length_matched"] = matched
        self.log_dict(summary, sync_dist=True)  # the same on all ranks already
        self._latest = {name: torch.cat(parts) for name, parts in self._seen.items()}
        self._seen = {name: [] for name in self._seen}
        for metric in (self.calibration, self.length_correlation, self.matched, self.longer, self.right):
            metric.reset()

    @torch.no_grad()
    def on_fit_end(self) -> None:
        """Shifts the score so that demonstrations average zero without dropout (Ouyang et al. 2022, section 3.5).

        Not in on_train_end, which a run resumed from its last step never reaches.
        """
        data = self.data
        if data is None:
            return
        was_training = self.training
        self.eval()
        scores = torch.cat([self.scores(self._here(batch)) for batch in data.demonstration_batches()])
        self.train(was_training)
        self.demonstration_score = float(scores.mean())
        self.model.rescale_(scale=1.0, shift=-self.demonstration_score)

    def _here(self, batch: PreferenceBatch) -> PreferenceBatch:
        return self.transfer_batch_to_device(batch, self.device, 0)

    def histograms(self) -> dict[str, Tensor]:
        """Scores and lengths of the held-out answers at the latest validation."""
        return self._latest

    def exportable(self) -> ScalarModel:
        return self.model
