"""The loss of packed rows is the loss of their documents, each alone; with the control that must fail."""

import pytest
import torch
from torch.testing import assert_close

from components.models.attention.layout import Layout
from components.stages.pretrain import Pretrain
from components.stages.rm import RewardModel
from components.stages.sft import SFT
from tests.kit.tiny_stages import (
    CONSTANT,
    END,
    PROMPTS,
    adam,
    attached,
    causal,
    distill,
    flat_gradient,
    lm_batch,
    ppo,
    preference_batch,
    scalar,
)

DOCUMENTS = [([1, 3, 4], [5, 6, 7, END]), ([1, 8], [9, END]), ([1], [10, 11, 3, 3, 4, 12, END]), ([1, 5, 5, 5], [END])]
RANKINGS = [
    ([1, 3, 4], [[5, 6, END], [7, END], [8, 9, 10, END]], [0.0, 2.0, 1.0]),
    ([1, 11], [[12, 13, END], [14, END]], [1.0, 0.0]),
    ([1, 6, 7, 8], [[9, END], [9, 9, END], [3, END], [END]], [3.0, 1.0, 0.0, 1.0]),
]


def without_boundaries(layout: Layout) -> Layout:
    """The mistake: rows read as one text each, filler included."""
    positions = torch.arange(layout.positions.shape[1]).expand_as(layout.positions)
    return Layout(positions, torch.zeros_like(layout.segments), torch.full_like(layout.parents, -1))


@pytest.mark.parametrize("kind", [Pretrain, SFT])
def test_a_packed_language_batch_has_the_loss_and_gradient_of_its_documents_alone(kind):
    stage = attached(kind(model=causal, optimizer=adam(1e-3), schedule=CONSTANT))
    together = stage.compute_loss(lm_batch(DOCUMENTS, row_length=16))
    alone = [stage.compute_loss(lm_batch([document])) for document in DOCUMENTS]
    assert together.weight == 4 + 2 + 7 + 1 == sum(one.weight for one in alone)
    loss = sum(one.loss * one.weight for one in alone) / together.weight
    assert_close(together.loss, loss, atol=1e-5, rtol=0)
    assert_close(flat_gradient(stage, together.loss), flat_gradient(stage, loss), atol=1e-5, rtol=0)


def test_reading_packed_rows_as_one_text_would_change_the_loss():
    stage = attached(SFT(model=causal, optimizer=adam(1e-3), schedule=CONSTANT))
    batch = lm_batch(DOCUMENTS, row_length=16)
    naive = batch._replace(layout=without_boundaries(batch.layout))
    assert abs(stage.compute_loss(batch).loss - stage.compute_loss(naive).loss) > 1e-2


def reward_model() -> RewardModel:
    return attached(RewardModel(model=scalar, optimizer=adam(1e-3), schedule=CONSTANT))


def test_a_prompt_read_once_scores_its_answers_as_if_each_had_been_read_with_its_own():
    stage = reward_model()
    shared = stage.scores(preference_batch(RANKINGS, row_length=32))
    alone = [
        stage.scores(preference_batch([(prompt, [answer], [0.0])]))
        for prompt, answers, _ in RANKINGS
        for answer in answers
    ]
    assert_close(shared, torch.cat(alone), atol=1e-5, rtol=0)


def test_a_packed_ranking_has_the_loss_and_gradient_of_one_forward_per_comparison():
    """Each pair (better, worse) alone in its own batch: K(K−1) forwards instead of K."""
    stage = reward_model()
    together = stage.compute_loss(preference_batch(RANKINGS, row_length=32))
    prompt_losses = []
    for prompt, answers, ranks in RANKINGS:
        pairs = [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]
        alone = [preference_batch([(prompt, [answers[i], answers[j]], [0.0, 1.0])]) for i, j in pairs]
        losses = [stage.compute_loss(batch).loss for batch in alone]
        prompt_losses.append(sum(losses) / len(losses))
    loss = sum(prompt_losses) / 3
    assert together.weight == 3
    assert_close(together.loss, loss, atol=1e-5, rtol=0)
    assert_close(flat_gradient(stage, together.loss), flat_gradient(stage, loss), atol=1e-5, rtol=0)


def test_reading_packed_rankings_as_one_text_would_change_the_loss():
    stage = reward_model()
    batch = preference_batch(RANKINGS, row_length=32)
    naive = batch._replace(layout=without_boundaries(batch.layout))
    assert abs(stage.compute_loss(batch).loss - stage.compute_loss(naive).loss) > 1e-2


@pytest.mark.parametrize("make", [ppo, distill])
def test_one_minibatch_of_responses_that_share_prompts_has_the_loss_of_minibatches_of_one(make):
    stage = attached(make(samples_per_prompt=3, epochs=1, minibatches=1))
    [together] = stage.collect(PROMPTS[:3], 0)
    stage.minibatches = 9
    alone = [stage.compute_loss(one) for one in stage.collect(PROMPTS[:3], 0)]
    whole = stage.compute_loss(together)
    # filler or trunks next to the nine responses: they share a row
    rows = together if make is distill else together.packed
    assert rows.layout.segments.unique().numel() > 9
    assert whole.weight == int(together.mask.sum()) == sum(one.weight for one in alone)
    loss = sum(one.loss * one.weight for one in alone) / whole.weight
    assert_close(whole.loss, loss, atol=1e-5, rtol=0)
    assert_close(flat_gradient(stage, whole.loss), flat_gradient(stage, loss), atol=2e-6, rtol=0)
