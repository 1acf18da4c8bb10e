"""Each stage can memorize a few records, and a model trained on answers that end learns to end its own."""

import math

import pytest
import torch

from components.functional.seeding import seeded
from components.generation.generate import Sampling, generate
from components.stages.pretrain import Pretrain
from components.stages.rm import RewardModel
from components.stages.sft import SFT
from tests.kit.tiny_stages import (
    CONSTANT,
    END,
    PAD,
    Batches,
    ListLogger,
    adam,
    attached,
    causal,
    fit,
    lm_batch,
    preference_batch,
    scalar,
    trainer,
)

VOCABULARY = 16


def test_pretraining_memorizes_two_documents():
    documents = [([1, 13], [3, 4, 5, 3, 6, 7, 3, 8, END]), ([1, 14], [9, 9, 10, 4, 11, 5, 12, END])]
    logger = ListLogger()
    fit(
        Pretrain(model=causal, optimizer=adam(1e-2), schedule=CONSTANT),
        [lm_batch(documents)] * 60,
        max_steps=60,
        logger=logger,
    )
    assert logger["train/loss"][0] > 1
    assert logger["train/loss"][-1] < 0.1
    assert logger["train/perplexity"][-1] == pytest.approx(math.exp(logger["train/loss"][-1]), rel=1e-5)


def test_a_fresh_model_with_small_weights_starts_at_the_loss_of_a_uniform_guess():
    """Within 5% of ln V."""
    stage = Pretrain(model=lambda: causal(initializer_range=0.02), optimizer=adam(1e-2), schedule=CONSTANT)
    text = [([1], torch.randint(3, VOCABULARY, (80,), generator=torch.Generator().manual_seed(0)).tolist())]
    loss = attached(stage).compute_loss(lm_batch(text)).loss.detach()
    assert float(loss) == pytest.approx(math.log(VOCABULARY), rel=0.05)


def test_a_reward_model_learns_to_tell_a_few_pairs_apart():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, VOCABULARY, (12, 8), generator=generator).tolist()
    pairs = [([1, *row[:2]], [[*row[2:5], END], [*row[5:8], END]], [0.0, 1.0]) for row in rows]
    logger = ListLogger()
    fit(
        RewardModel(model=scalar, optimizer=adam(3e-3), schedule=CONSTANT),
        [preference_batch(pairs)] * 40,
        max_steps=40,
        logger=logger,
    )
    assert logger["train/accuracy"][0] < 0.9
    assert logger["train/accuracy"][-1] == 1.0
    assert logger["train/loss"][-1] < 0.05


@pytest.mark.parametrize(
    "pad_id", [pytest.param(PAD, marks=pytest.mark.slow), END], ids=["pad", "pad is the end token"]
)
def test_a_model_shown_answers_of_five_tokens_stops_by_itself_after_five(pad_id):
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(150):
        rows = torch.randint(3, VOCABULARY, (31, 6), generator=generator).tolist()
        batches.append(lm_batch([([1, row[0]], [*row[1:], END]) for row in rows], filler=pad_id, row_length=20))
    assert (batches[0].layout.segments == -1).any()  # there is padding to confuse with the end
    stage = SFT(model=causal, optimizer=adam(1e-2), schedule=CONSTANT)
    fit(stage, batches, max_steps=150)
    samples = generate(
        stage.exportable().eval(),
        [[1, token] for token in range(3, VOCABULARY)],
        Sampling(max_new_tokens=12),
        stop_ids=[END],
        pad_id=pad_id,
        generator=seeded("cpu", 0),
        samples_per_prompt=20,
    )
    assert samples.finished.float().mean() >= 0.99
    assert (samples.mask.sum(1) == 6).float().mean() >= 0.99


def test_metrics_of_validation_are_means_over_tokens_not_over_batches():
    documents = [([1, 3], [4, 5, 6, 7, 8, 9, 10, END]), ([1], [5, END])]
    stage = SFT(model=causal, optimizer=adam(0.0), schedule=CONSTANT)
    run = trainer(max_steps=1)
    run.validate(stage, Batches([lm_batch([document]) for document in documents]), verbose=False)
    with torch.no_grad():
        whole = stage.compute_loss(lm_batch(documents))
    metrics = run.callback_metrics
    assert float(metrics["val/loss"]) == pytest.approx(float(whole.loss), abs=1e-6)
    assert float(metrics["val/accuracy"]) == pytest.approx(float(whole.metrics["accuracy"]), abs=1e-6)
    assert float(metrics["val/perplexity"]) == pytest.approx(math.exp(float(whole.loss)), rel=1e-5)
    assert float(metrics["val/bits_per_byte"]) == pytest.approx(float(whole.loss) / math.log(2), rel=1e-5)
