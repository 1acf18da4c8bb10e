"""DPO: the loss is that of the comparisons, each read alone; it starts at the reference, or refuses to start."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from components.models.attention.layout import Layout
from components.stages import dpo as module
from components.stages.dpo import DPO, answer_logprobs
from components.training.self_checks import SelfCheckError
from tests.kit.tiny_stages import (
    END,
    Batches,
    ListLogger,
    adam,
    another_reference,
    attached,
    causal,
    dpo,
    fit,
    flat_gradient,
    keeper,
    moved,
    preference_batch,
    same_bits,
    slow_logprob,
    trainer,
    weights,
)

PAIR = ([1, 3, 4], [[5, 6, END], [7, END]], [0.0, 1.0])
RANKINGS = [  # 3 + 1 + 5 pairs
    ([1, 3, 4], [[5, 6, END], [7, END], [8, 9, 10, END]], [0.0, 2.0, 1.0]),
    ([1, 11], [[12, 13, END], [14, END]], [1.0, 0.0]),
    ([1, 6, 7, 8], [[9, END], [9, 9, END], [3, END], [END]], [3.0, 1.0, 0.0, 1.0]),
]
TIED = ([1, 4], [[5, END], [6, END]], [1.0, 1.0])


@pytest.fixture
def stage() -> DPO:
    """Its policy has left the reference."""
    return moved(attached(dpo()))


def test_the_first_loss_is_ln_2_and_its_gradient_half_beta_times_the_difference_of_gradients():
    """−β/2 · (∇ log π(w) − ∇ log π(l)) when the policy equals its reference."""
    stage = attached(dpo(beta=0.3))
    output = stage.compute_loss(preference_batch([PAIR]))
    prompt, (better, worse), _ = PAIR
    difference = slow_logprob(stage.policy, prompt, better) - slow_logprob(stage.policy, prompt, worse)
    expected = -0.3 / 2 * flat_gradient(stage, difference)
    assert float(output.loss.detach()) == pytest.approx(math.log(2), abs=1e-7)
    assert output.weight == 1
    assert expected.abs().max() > 0.1
    assert_close(flat_gradient(stage, output.loss), expected, atol=1e-5, rtol=0)


def test_an_answers_logprob_is_that_of_a_slow_loop_over_its_tokens_and_its_end(stage):
    found = answer_logprobs(stage.policy, preference_batch(RANKINGS, row_length=32))
    texts = [(prompt, answer) for prompt, answers, _ in RANKINGS for answer in answers]
    with torch.no_grad():
        expected = torch.stack([slow_logprob(stage.policy, prompt, answer) for prompt, answer in texts])
        without_end = torch.stack(
            [expected.new_tensor(0.0) + slow_logprob(stage.policy, prompt, answer[:-1]) for prompt, answer in texts]
        )
    assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found - without_end).abs().min() > 1e-2


def test_packed_rankings_have_the_loss_and_gradient_of_their_pairs_alone(stage):
    together = stage.compute_loss(preference_batch(RANKINGS, row_length=32))
    losses = []
    for prompt, answers, ranks in RANKINGS:
        pairs = [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]
        alone = [preference_batch([(prompt, [answers[i], answers[j]], [0.0, 1.0])]) for i, j in pairs]
        losses += [stage.compute_loss(batch).loss for batch in alone]
    assert together.weight == len(losses) == 3 + 1 + 5
    assert_close(together.loss, sum(losses) / 9, atol=1e-5, rtol=0)
    assert_close(flat_gradient(stage, together.loss), flat_gradient(stage, sum(losses) / 9), atol=1e-5, rtol=0)


def test_reading_packed_rankings_as_one_text_would_change_the_loss(stage):
    batch = preference_batch(RANKINGS, row_length=32)
    positions = torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids)
    as_one = Layout(positions, torch.zeros_like(positions), torch.full_like(positions, -1))
    assert abs(stage.compute_loss(batch).loss - stage.compute_loss(batch._replace(layout=as_one)).loss) > 1e-2


def test_the_loss_reaches_a_prompt_only_by_what_its_answers_read_of_it(stage):
    """Only tokens that predict an answer's token have a gradient of their own; the last token predicts none."""
    kept = {}
    stage.policy.model.embed_tokens.register_forward_hook(lambda _, __, out: kept.update(embedded=out))
    stage.policy.model.register_forward_hook(lambda _, __, out: kept.update(hidden=out))
    loss = stage.compute_loss(preference_batch([PAIR])).loss
    embedded, hidden = torch.autograd.grad(loss, [kept["embedded"], kept["hidden"]])
    #                                      prompt 1 3 4         5 6 END             7 END
    assert (hidden[0].abs().sum(1) > 0).tolist() == [False, False, True, True, True, False, True, False]
    assert (embedded[0].abs().sum(1) > 0).tolist() == [True, True, True, True, True, False, True, False]


@pytest.mark.parametrize("variant", ["sigmoid", "robust", "ipo", "hinge"])
def test_a_constant_of_each_prompt_on_the_reference_logprobs_changes_nothing(variant, monkeypatch):
    """A constant on only one of the answers does."""
    stage = moved(attached(dpo(variant=variant)), 0.02)
    batch = preference_batch(RANKINGS)

    def loss_with(added: Tensor) -> Tensor:
        add = lambda model, batch: answer_logprobs(model, batch) + (added if model is stage.reference else 0.0)
        monkeypatch.setattr(module, "answer_logprobs", add)
        return stage.compute_loss(batch).loss

    plain = loss_with(torch.zeros(9))
    assert_close(loss_with(torch.tensor([3.0, -2.0, 5.0])[batch.groups]), plain, atol=1e-5, rtol=1e-5)
    assert abs(loss_with(torch.eye(9)[0]) - plain) > 1e-3


def test_a_ranking_makes_all_its_pairs_and_ties_make_none():
    answers = [[5, END], [6, END], [7, END], [8, END]]
    stage = attached(dpo())
    for ranks, pairs in (([0, 1, 2, 3], 6), ([0, 1, 1, 1], 3), ([2, 1, 1, 2], 4), ([1, 1, 1, 1], 0)):
        assert stage.compute_loss(preference_batch([([1, 3], answers, ranks)])).weight == pairs
    two = [([1, 3], answers[:2], [0.0, 1.0]), ([1, 4], answers[2:], [0.0, 1.0])]
    assert stage.compute_loss(preference_batch(two)).weight == 2  # none across prompts


def test_metrics_are_those_of_a_slow_loop(stage):
    with torch.no_grad():
        rewards, logprobs = [], []
        for prompt, answers, _ in RANKINGS:
            logprobs.append([float(slow_logprob(stage.policy, prompt, answer)) for answer in answers])
            of_reference = [float(slow_logprob(stage.reference, prompt, answer)) for answer in answers]
            rewards.append([0.1 * (one - other) for one, other in zip(logprobs[-1], of_reference)])
    pairs = [
        (g, i, j)
        for g, (_, _, ranks) in enumerate(RANKINGS)
        for i in range(len(ranks))
        for j in range(len(ranks))
        if ranks[i] < ranks[j]
    ]
    chosen = [rewards[g][i] for g, i, _ in pairs]
    rejected = [rewards[g][j] for g, _, j in pairs]
    right = [one > other for one, other in zip(chosen, rejected)]
    expected = {
        "accuracy": sum(right) / 9,
        "margin": (sum(chosen) - sum(rejected)) / 9,
        "chosen_reward": sum(chosen) / 9,
        "rejected_reward": sum(rejected) / 9,
        "chosen_logprob": sum(logprobs[g][i] for g, i, _ in pairs) / 9,
    }
    found = stage.compute_loss(preference_batch(RANKINGS)).metrics
    assert 0 < sum(right) < 9
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, abs=1e-5)


def test_it_memorizes_comparisons_and_ranks_answers_as_the_reward_did():
    """Five answers to each prompt; the more sevens the better. The implicit reward β log π/π_ref then agrees."""
    answers = [[7, 7, 7, END], [7, 7, 3, END], [5, 7, 4, END], [4, 6, 8, END], [9, 3, END]]
    ranks = [0.0, 1.0, 2.0, 3.0, 3.0]
    batch = preference_batch([([1, first], answers, ranks) for first in (3, 4, 5)])
    logger, stage = ListLogger(), dpo(optimizer=adam(3e-3))
    fit(stage, [batch] * 30, max_steps=30, logger=logger)
    assert logger["train/loss"][0] == pytest.approx(math.log(2), abs=1e-6)
    assert logger["train/accuracy"][0] == 0.5  # all margins are 0: ties count half
    assert logger["train/accuracy"][-1] == 1.0
    assert logger["train/loss"][-1] < 0.3
    with torch.no_grad():
        rewards = (answer_logprobs(stage.policy, batch) - answer_logprobs(stage.reference, batch)).view(3, 5)
    assert (rewards[:, 0] > rewards[:, 1]).all() and (rewards[:, 1] > rewards[:, 2]).all()
    assert (rewards[:, 2, None] > rewards[:, 3:]).all()
    assert same_bits(weights(stage.reference), weights(causal()))
    assert stage.exportable() is stage.policy


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("variant", "label_smoothing", "first"),
    [
        ("sigmoid", 0.0, math.log(2)),
        ("sigmoid", 0.1, math.log(2)),
        ("robust", 0.1, math.log(2)),
        ("ipo", 0.0, 1 / (2 * 0.1) ** 2),
        ("hinge", 0.0, 1.0),
    ],
)
def test_training_refuses_to_start_if_the_policy_is_not_its_reference(variant, label_smoothing, first, accumulate):
    batch, logger = preference_batch(RANKINGS), ListLogger()
    loss = {"variant": variant, "label_smoothing": label_smoothing}
    settings = {"max_steps": 1, "accumulate_grad_batches": accumulate}
    with pytest.raises(SelfCheckError, match="policy and reference differ before any update"):
        fit(dpo(another_reference(DPO), **loss), [batch] * accumulate, **settings)
    fit(dpo(**loss), [batch] * accumulate, logger=logger, **settings)
    assert logger["train/loss"] == [pytest.approx(first, rel=1e-6)]


def test_training_refuses_to_start_with_dropout():
    with pytest.raises(SelfCheckError, match="dropout"):
        fit(dpo(policy=lambda: causal(dropout=0.1)), [preference_batch(RANKINGS)], max_steps=1)


def test_only_the_very_first_batch_is_held_to_the_first_loss():
    """Later micro-batches of the first step, later steps and resumed runs do not start at ln 2."""
    logger = ListLogger()
    fit(
        dpo(optimizer=adam(1e-2)),
        [preference_batch(RANKINGS)] * 6,
        max_steps=3,
        accumulate_grad_batches=2,
        logger=logger,
    )
    assert abs(logger["train/loss"][-1] - math.log(2)) > 1e-2


def test_a_first_batch_without_a_pair_is_not_an_error():
    stage = dpo(optimizer=keeper())
    run = fit(stage, [preference_batch([TIED]), preference_batch(RANKINGS)], max_steps=2)
    assert run.optimizers[0].kept.abs().max() > 1e-2


def test_in_bf16_too_the_first_loss_is_exactly_ln_2_and_the_policy_learns():
    logger = ListLogger()
    batch = preference_batch(RANKINGS)
    fit(dpo(optimizer=adam(3e-3)), [batch] * 20, max_steps=20, precision="bf16-mixed", logger=logger)
    assert logger["train/loss"][0] == pytest.approx(math.log(2), abs=1e-7)
    assert logger["train/loss"][-1] < 0.4


def test_validation_reports_means_over_pairs_and_moves_nothing():
    stage = dpo(another_reference(DPO))
    run = trainer(max_steps=1)
    stage.configure_model()
    before = weights(stage)
    run.validate(stage, Batches([preference_batch([one]) for one in [*RANKINGS, TIED]]), verbose=False)
    with torch.no_grad():
        whole = stage.compute_loss(preference_batch(RANKINGS))
    for name, value in {"loss": whole.loss, **whole.metrics}.items():
        assert float(run.callback_metrics[f"val/{name}"]) == pytest.approx(float(value), abs=1e-5), name
    assert same_bits(before, weights(stage))
