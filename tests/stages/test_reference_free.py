"""SimPO and ORPO: the loss is that of the pairs, each read alone, by the mean log-probability of its tokens."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from tests.kit.tiny_stages import (
    END,
    ListLogger,
    adam,
    attached,
    fit,
    flat_gradient,
    orpo,
    preference_batch,
    simpo,
    slow_logprob,
)

RANKINGS = [  # 3 + 1 pairs
    ([1, 3, 4], [[5, 6, END], [7, END], [8, 9, 10, END]], [0.0, 2.0, 1.0]),
    ([1, 11], [[12, 13, END], [14, END]], [1.0, 0.0]),
]
PAIRS = [(0, 0, 2), (0, 0, 1), (0, 2, 1), (1, 1, 0)]  # prompt, better, worse
STAGES = {"simpo": simpo, "orpo": orpo}


def slow_loss(name: str, chosen: Tensor, rejected: Tensor) -> Tensor:
    if name == "simpo":
        return -logsigmoid(2 * (chosen - rejected) - 0.5)
    odds = [m.exp() / (1 - m.exp()) for m in (chosen, rejected)]
    return -chosen - 0.1 * logsigmoid((odds[0] / odds[1]).log())


@pytest.mark.parametrize("name", STAGES)
def test_the_loss_and_metrics_are_those_of_a_slow_loop_over_pairs(name):
    stage = attached(STAGES[name]())
    means = [
        [slow_logprob(stage.policy, prompt, answer) / len(answer) for answer in answers]
        for prompt, answers, _ in RANKINGS
    ]
    chosen = torch.stack([means[prompt][better] for prompt, better, _ in PAIRS])
    rejected = torch.stack([means[prompt][worse] for prompt, _, worse in PAIRS])
    expected = slow_loss(name, chosen, rejected).mean()
    output = stage.compute_loss(preference_batch(RANKINGS, row_length=32))
    assert output.weight == 4
    assert_close(output.loss, expected, atol=1e-5, rtol=0)
    assert_close(flat_gradient(stage, output.loss), flat_gradient(stage, expected), atol=1e-5, rtol=0)
    metrics = {
        "accuracy": (chosen > rejected).float().mean(),
        "margin": (chosen - rejected).mean(),
        "chosen_logprob": chosen.mean(),
        "rejected_logprob": rejected.mean(),
    }
    assert output.metrics.keys() == metrics.keys()
    for key, value in metrics.items():
        assert_close(output.metrics[key], value.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", STAGES)
def test_packed_rankings_have_the_gradient_of_their_pairs_alone(name):
    stage = attached(STAGES[name]())
    together = stage.compute_loss(preference_batch(RANKINGS, row_length=32))
    alone = []
    for prompt, better, worse in PAIRS:
        ids, answers, _ = RANKINGS[prompt]
        batch = preference_batch([(ids, [answers[better], answers[worse]], [0.0, 1.0])])
        alone.append(stage.compute_loss(batch).loss)
    assert_close(flat_gradient(stage, together.loss), flat_gradient(stage, sum(alone) / 4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", STAGES)
def test_it_memorizes_comparisons_of_answers_of_different_lengths(name):
    answers = [[7, 7, 7, 7, END], [5, 7, END], [4, END]]
    batch = preference_batch([([1, first], answers, [0.0, 1.0, 2.0]) for first in (3, 4, 5)])
    logger, stage = ListLogger(), STAGES[name](optimizer=adam(1e-2))
    fit(stage, [batch] * 12, max_steps=12, logger=logger)
    assert logger["train/loss"][-1] < logger["train/loss"][0] - 0.3
    assert logger["train/accuracy"][-1] == 1.0
    assert stage.exportable() is stage.policy and not hasattr(stage, "reference")


def test_a_batch_without_a_pair_teaches_nothing_and_is_not_an_error():
    tied = preference_batch([([1, 4], [[5, END], [6, END]], [1.0, 1.0])])
    output = attached(simpo()).compute_loss(tied)
    assert (float(output.loss.detach()), output.weight) == (0.0, 0)
