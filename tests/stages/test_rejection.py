"""Rejection sampling: the best response to each prompt is imitated, and nothing else is."""

import logging

import pytest
import torch
from torch.testing import assert_close

from components.generation.generate import Sampling
from components.generation.rollout import Minibatch
from components.stages.rejection import Rejection
from components.stages.sft import SFT
from components.training.self_checks import SelfCheckError
from tests.kit.tiny_stages import (
    CONSTANT,
    END,
    PROMPTS,
    Batches,
    CountsSevens,
    ListLogger,
    adam,
    another_reference,
    attached,
    causal,
    fit_prompts,
    flat_gradient,
    given,
    lm_batch,
    rejection,
    same_bits,
    weights,
    with_reward,
)

# sevens: 1 2 2 0 | 0, 3 without an end, 0, 1 | 0 0 0 0
RESPONSES = (
    [7, END],
    [7, 7, END],
    [7, 3, 7, END],
    [4, END],
    [4, 5, 6, END],
    [7, 7, 7, 3, 4, 5],
    [3, END],
    [7, 4, 4, 4, END],
    [3, END],
    [4, 4, END],
    [5, END],
    [6, 6, END],
)
BEST = (1, 7, 8)  # a tie goes to the first


def sevens(**changes) -> tuple[Rejection, ListLogger]:
    """A stage that counts sevens in the twelve given responses, and what it logs."""
    logger = ListLogger()
    settings = dict(epochs=1, minibatches=1, score_scale=1.0) | changes
    stage = with_reward(rejection(given(Rejection, *RESPONSES), **settings), CountsSevens())
    return attached(stage, logger=logger), logger


def responses(batch: Minibatch) -> list[list[int]]:
    return [ids[keep].tolist() for ids, keep in zip(batch.packed.response_ids, batch.mask)]


def test_of_each_prompts_responses_the_best_is_kept_and_of_equals_the_first():
    stage, logger = sevens()
    [batch] = stage.collect(PROMPTS[:3], 0)
    assert responses(batch) == [RESPONSES[n] for n in BEST]
    assert [response.count(7) for response in responses(batch)] == [2, 1, 0]
    assert logger["rollout/best_score"] == [1.0]
    assert logger["rollout/score"] == [pytest.approx((1 + 2 + 2 + 0 + 0 - 3 + 0 + 1) / 12)]  # of all that were sampled


def test_a_response_without_an_end_is_kept_where_its_score_is_the_best():
    stage, _ = sevens(missing_end_score=9.0)
    [batch] = stage.collect(PROMPTS[:3], 0)
    assert responses(batch)[1] == RESPONSES[5]


def test_the_loss_is_that_of_fine_tuning_on_the_best_and_on_nothing_else():
    stage, _ = sevens()
    [batch] = stage.collect(PROMPTS[:3], 0)
    output = stage.compute_loss(batch)
    tuning = attached(SFT(model=causal, optimizer=adam(1e-3), schedule=CONSTANT))
    texts = [(PROMPTS[place]["ids"], RESPONSES[n]) for place, n in enumerate(BEST)]
    expected = tuning.compute_loss(lm_batch(texts))
    assert output.weight == expected.weight == 3 + 5 + 2
    assert_close(output.loss, expected.loss, atol=1e-6, rtol=0)
    found, gradient = flat_gradient(stage, output.loss), flat_gradient(tuning, expected.loss)
    assert gradient.abs().max() > 1e-2
    assert_close(found, gradient, atol=1e-6, rtol=0)


def test_every_epoch_hands_out_the_best_once_and_no_other_ever():
    stage, _ = sevens(epochs=3, minibatches=2)
    parts = stage.collect(PROMPTS[:3], 0)
    assert len(parts) == 6
    for epoch in range(3):
        kept = responses(parts[2 * epoch]) + responses(parts[2 * epoch + 1])
        assert sorted(kept) == sorted(RESPONSES[n] for n in BEST)


def test_fewer_prompts_than_minibatches_are_refused():
    stage, _ = sevens(minibatches=4)
    with pytest.raises(ValueError, match="3 responses cannot make 4 minibatches; lower stage.minibatches"):
        stage.collect(PROMPTS[:3], 0)


def test_a_kl_coefficient_and_groups_of_one_are_refused():
    with pytest.raises(ValueError, match="stage.beta: rejection sampling has no KL term"):
        rejection(beta=0.1)
    with pytest.raises(ValueError, match="stage.samples_per_prompt: got 1, expected at least 2"):
        rejection(samples_per_prompt=1)


@pytest.mark.slow
def test_in_bf16_too_the_self_check_finds_no_difference(caplog):
    """The best are read in other rows than all were, and other rows round otherwise, by up to 15% in a ratio."""
    wide = lambda: causal(hidden_size=256, intermediate_size=512, num_hidden_layers=8, initializer_range=0.3)
    tokens = torch.Generator().manual_seed(0)
    prompts = [
        {"ids": [1, *torch.randint(3, 16, (n % 7 + 1,), generator=tokens).tolist()], "prompt": "", "reference": None}
        for n in range(32)
    ]
    stage = rejection(policy=wide, minibatches=4, epochs=1)
    with caplog.at_level(logging.INFO):
        fit_prompts(stage, 1, prompts=prompts, per_rollout=32, precision="bf16-mixed")
    assert "max |ratio − 1| 0.0e+00, max |log π/π_ref| 0.0e+00 before the first update" in caplog.text


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (another_reference(Rejection), {}, "differs from its reference"),
        (Rejection, {"policy": lambda: causal(dropout=0.1)}, "dropout"),
    ],
)
def test_training_refuses_to_start_where_policy_and_reference_differ_or_drop_out(kind, changes, message):
    with pytest.raises(SelfCheckError, match=message):
        fit_prompts(rejection(kind, **changes), 1)


def test_validation_reports_all_of_the_policys_samples_not_the_best():
    stage, _ = sevens()
    before = weights(stage)
    stage.trainer.validate(stage, Batches([PROMPTS[:3]]), verbose=False)
    metrics = stage.trainer.callback_metrics
    assert float(metrics["val/score"]) == pytest.approx(3 / 12)
    assert float(metrics["val/finished"]) == pytest.approx(11 / 12)
    assert same_bits(before, weights(stage))


def test_the_policy_learns_what_a_trivial_reward_pays_for():
    stage = rejection(
        sampling=Sampling(5), optimizer=adam(1e-2), minibatches=1, missing_end_score=0.0, samples_per_prompt=8
    )
    logger = ListLogger()
    fit_prompts(with_reward(stage, CountsSevens()), 40, logger=logger)
    scores = [score / float(stage.score_scale) for score in logger["rollout/score"]]  # at most 4 before an end
    best = [score / float(stage.score_scale) for score in logger["rollout/best_score"]]
    assert sum(scores[:2]) < sum(best[:2]) < 2
    assert sum(scores[-3:]) / 3 > 2
    assert same_bits(weights(stage.reference), weights(causal()))
    assert stage.exportable() is stage.policy
