"""The reward model: what its loss depends on, and the zero of its scores."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from components.evaluation.measure.reward_model import evaluate_ranking
from components.stages.rm import RewardModel
from tests.kit.tiny_stages import (
    CONSTANT,
    END,
    Batches,
    adam,
    attached,
    flat_gradient,
    preference_batch,
    quiet_fit,
    scalar,
    trainer,
)

PAIRS = [
    ([1, 3, 4], [[5, 6, END], [7, END]], [0.0, 1.0]),
    ([1, 8], [[9, 10, 11, END], [12, END]], [1.0, 0.0]),
    ([1, 13], [[14, END], [15, 3, END]], [0.0, 1.0]),
]
RANKINGS = [*PAIRS, ([1, 6, 7], [[3, END], [4, 4, END], [5, END], [8, END]], [2.0, 0.0, 1.0, 3.0])]


@pytest.fixture
def stage() -> RewardModel:
    return attached(RewardModel(model=scalar, optimizer=adam(1e-3), schedule=CONSTANT))


def test_the_loss_and_accuracy_of_pairs_are_those_of_a_slow_loop(stage):
    batch = preference_batch(PAIRS)
    scores = stage.scores(batch).tolist()
    margins = [scores[0] - scores[1], scores[3] - scores[2], scores[4] - scores[5]]
    output = stage.compute_loss(batch)
    assert output.weight == 3
    assert float(output.loss.detach()) == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 3, abs=1e-6)
    assert float(output.metrics["margin"]) == pytest.approx(sum(margins) / 3, abs=1e-6)
    assert float(output.metrics["accuracy"]) == pytest.approx(sum(m > 0 for m in margins) / 3)


@pytest.mark.parametrize(
    ("option", "term"),
    [
        ({"margin": 0.5}, lambda r, s: math.log1p(math.exp(s - r + 0.5))),
        ({"label_smoothing": 0.1}, lambda r, s: math.log1p(math.exp(s - r)) + 0.1 * (r - s)),
        ({"centering": 0.01}, lambda r, s: math.log1p(math.exp(s - r)) + 0.01 * (r + s) ** 2),
    ],
    ids=["margin", "label_smoothing", "centering"],
)
def test_an_option_of_the_loss_changes_each_pairs_term(option, term):
    stage = attached(RewardModel(model=scalar, optimizer=adam(1e-3), schedule=CONSTANT, **option))
    batch = preference_batch(PAIRS)
    scores = stage.scores(batch).tolist()
    terms = [term(scores[0], scores[1]), term(scores[3], scores[2]), term(scores[4], scores[5])]
    assert float(stage.compute_loss(batch).loss.detach()) == pytest.approx(sum(terms) / 3, abs=1e-6)


def test_equal_scores_count_half(stage):
    with torch.no_grad():
        stage.model.score.weight.zero_()
    output = stage.compute_loss(preference_batch(RANKINGS))
    assert output.metrics["accuracy"] == 0.5
    assert float(output.loss.detach()) == pytest.approx(math.log(2), abs=1e-6)


def test_adding_a_constant_to_all_scores_changes_neither_loss_nor_gradient(stage):
    batch = preference_batch(RANKINGS)
    before = stage.compute_loss(batch)
    gradient = flat_gradient(stage, before.loss)
    stage.model.rescale_(scale=1.0, shift=3.0)
    after = stage.compute_loss(batch)
    assert_close(after.loss, before.loss, atol=1e-6, rtol=0)
    assert_close(flat_gradient(stage, after.loss), gradient, atol=1e-6, rtol=0)
    assert after.metrics["accuracy"] == before.metrics["accuracy"]


def test_swapping_winner_and_loser_is_the_loss_of_the_negated_margin(stage):
    """log(1 + e^m) − log(1 + e^−m) = m."""
    swapped = [(prompt, answers, [-rank for rank in ranks]) for prompt, answers, ranks in PAIRS]
    one, other = (stage.compute_loss(preference_batch(pairs)) for pairs in (PAIRS, swapped))
    assert_close(other.loss - one.loss, one.metrics["margin"], atol=1e-6, rtol=0)
    assert float(one.metrics["accuracy"] + other.metrics["accuracy"]) == pytest.approx(1.0)


@pytest.mark.parametrize("order", [[3, 2, 1, 0], [1, 3, 0, 2]])
def test_the_order_of_a_prompts_answers_changes_neither_loss_nor_gradient(stage, order):
    prompt, answers, ranks = RANKINGS[-1]
    permuted = [*PAIRS, (prompt, [answers[i] for i in order], [ranks[i] for i in order])]
    one, other = (stage.compute_loss(preference_batch(rankings)) for rankings in (RANKINGS, permuted))
    assert_close(other.loss, one.loss, atol=1e-6, rtol=0)
    assert_close(flat_gradient(stage, other.loss), flat_gradient(stage, one.loss), atol=1e-6, rtol=0)


def test_a_score_ignores_what_comes_after_the_end_token(stage):
    clean, tailed = (stage.scores(preference_batch(RANKINGS, tails=tails)) for tails in ([], [7, 15, END, 3]))
    assert_close(tailed, clean, atol=1e-6, rtol=0)


def test_a_score_depends_on_the_end_token(stage):
    """Read one token earlier (GPT-NeoX #1285), it would differ."""
    batch = preference_batch(RANKINGS)
    early = stage.scores(batch._replace(last=batch.last - 1))
    assert (early - stage.scores(batch)).abs().min() > 1e-3


def fitted(module, **settings) -> RewardModel:
    stage = RewardModel(
        model=lambda: scalar(vocab_size=module.tokenizer.vocab_size), optimizer=adam(1e-3), schedule=CONSTANT
    )
    quiet_fit(trainer(**settings), stage, datamodule=module)
    return stage


def mean_of_demonstrations(stage: RewardModel, module) -> float:
    with torch.no_grad():
        return float(torch.cat([stage.scores(batch) for batch in module.demonstration_batches()]).mean())


@pytest.mark.parametrize("demonstrations", ["world", None])
def test_after_training_demonstrations_average_zero(data, demonstrations):
    module = data("rm", demonstrations=demonstrations)
    stage = fitted(module, max_steps=4)
    assert abs(stage.demonstration_score) > 1e-3
    assert abs(mean_of_demonstrations(stage, module)) < 1e-5


class Scored(RewardModel):
    """Its scores are the batches' ranks."""

    def scores(self, batch):
        self.read = [*getattr(self, "read", []), len(batch.ranks)]
        return batch.ranks


@pytest.mark.parametrize(
    ("deviation", "batches"),
    [
        (0.0, 4),  # four batches of 8 are the fewest
        (0.4, 8),  # .4/√64 = .05
        (9.0, 10),  # all there are
    ],
)
def test_demonstrations_are_read_until_their_mean_is_known(deviation, batches):
    """Half of them lie one deviation above 3, half below."""
    stage = Scored(model=scalar, optimizer=adam(0.0), schedule=CONSTANT)
    stage.trainer = trainer(max_steps=1)
    stage._on_device = lambda batch: batch
    stage.reduced = lambda number, how: number
    one = 3 + deviation * torch.tensor([1.0, -1.0] * 4) * 0.99
    assert stage._mean_score([SimpleNamespace(ranks=one)] * 10, 80) == pytest.approx(3.0)
    assert stage.read == [8] * batches


def test_validation_reports_calibration_and_what_length_alone_explains():
    """The longer answer is the better one in one pair of three."""
    stage = RewardModel(model=scalar, optimizer=adam(0.0), schedule=CONSTANT)
    run = trainer(max_steps=1)
    run.validate(stage, Batches([preference_batch(PAIRS[:2]), preference_batch(PAIRS[2:])]), verbose=False)
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    assert metrics["val/longer_wins"] == pytest.approx(1 / 3)
    accuracy = metrics["val/accuracy"]
    assert metrics["val/accuracy_stderr"] == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / 3))
    with torch.no_grad():
        scores = stage.scores(preference_batch(PAIRS))
    lengths = torch.tensor([3.0, 2, 4, 2, 2, 3])
    correlation = torch.corrcoef(torch.stack([scores, lengths]))[0, 1]
    assert metrics["val/score_length_correlation"] == pytest.approx(float(correlation), abs=1e-5)
    assert "val/accuracy_length_matched" not in metrics  # no pair is of matched length
    assert torch.equal(stage.histograms()["val/lengths"], lengths)
    assert_close(stage.histograms()["val/scores"], scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cut", [[4], [1, 3], [3, 1], [1, 1, 1, 1]], ids=str)
def test_validation_has_the_metrics_of_the_evaluation_however_the_batches_are_split(cut):
    """One prompt has six pairs and three have one: a mean over prompts or over batches would be another number."""
    stage = RewardModel(model=scalar, optimizer=adam(0.0), schedule=CONSTANT)
    run = trainer(max_steps=1)
    parts = [preference_batch([RANKINGS[i] for i in part]) for part in torch.arange(4).split(cut)]
    run.validate(stage, Batches(parts), verbose=False)
    expected = evaluate_ranking(stage.model, [preference_batch(RANKINGS)]).shares._asdict()
    names = ("accuracy", "margin", "ece", "score_length_correlation", "longer_wins")
    for name in names:
        assert float(run.callback_metrics[f"val/{name}"]) == pytest.approx(expected[name], abs=1e-5), name
