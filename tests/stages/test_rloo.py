"""RLOO: REINFORCE on whole responses, each against the mean of the others to its prompt."""

import math

import pytest
import torch
from torch.testing import assert_close

from components.generation.generate import Sampling
from components.generation.responses import response_logprobs
from components.generation.rollout import Minibatch
from components.stages.rloo import RLOO
from tests.kit.tiny_stages import (
    END,
    PROMPTS,
    CountsSevens,
    ListLogger,
    adam,
    attached,
    causal,
    experience_of,
    fit,
    fit_prompts,
    flat_gradient,
    garbled,
    given,
    moved,
    rloo,
    same_bits,
    slow_logprob,
    weights,
    with_reward,
)

# to the first prompt 2, 0, 0 and 2 sevens, to the second 1 each
RESPONSES = ([7, 7, END], [3, END], [4, 5, 6, END], [7, 3, 7, END], [7, END], [7, END], [3, 7, END], [7, 4, END])


def collected(rollout: int = 0, by: float = 0.0, **changes) -> tuple[RLOO, ListLogger, Minibatch]:
    """A stage that counts sevens, its policy moved, what it logged, and its minibatch of the eight given responses."""
    logger = ListLogger()
    settings = dict(epochs=1, minibatches=1, score_scale=1.0) | changes
    stage = with_reward(rloo(given(RLOO, *RESPONSES), **settings), CountsSevens())
    [batch] = moved(attached(stage, logger=logger), by).collect(PROMPTS[:2], rollout)
    return stage, logger, batch


def later(batch: Minibatch) -> Minibatch:
    """The minibatch as it is after some updates: ratios of some size."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch.mask.shape, generator=generator) * 0.2 * batch.mask
    return batch._replace(old_logprobs=batch.old_logprobs + noise)


def advantages_of(stage: RLOO, rewards: list[float], kl: list[list[float]]) -> list[float]:
    mask = torch.ones_like(torch.tensor(kl), dtype=torch.bool)
    return stage.advantages(experience_of(torch.tensor(rewards), mask, kl=torch.tensor(kl))).advantages.tolist()


def test_correct_and_wrong_answers_have_the_advantages_worked_by_hand():
    """r = 1, 0, 0, 1; each minus the mean of the three others."""
    found = advantages_of(attached(rloo(beta=0.0)), [1.0, 0.0, 0.0, 1.0], [[0.0]] * 4)
    assert found == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3], abs=1e-6)


def test_the_kl_of_a_whole_response_is_in_its_reward():
    """beta 0.2: 2 − 0.2·(0.5 + 1) = 1.7 against 1 + 0.2·0.5 = 1.1, and in the second group 3 against 0."""
    stage = attached(rloo(beta=0.2, samples_per_prompt=2))
    found = advantages_of(stage, [2.0, 1.0, 3.0, 0.0], [[0.5, 1.0], [0.0, -0.5], [0.0, 0.0], [0.0, 0.0]])
    assert found == pytest.approx([0.6, -0.6, 3.0, -3.0], abs=1e-6)


def test_advantages_are_those_of_a_slow_loop_over_collected_responses():
    stage, _, batch = collected(rollout=1, by=0.05, beta=0.7)
    rewards = []
    with torch.no_grad():
        for n, (response, sevens) in enumerate(zip(RESPONSES, (2, 0, 0, 2, 1, 1, 1, 1))):
            prompt = PROMPTS[n // 4]["ids"]
            kl = slow_logprob(stage.policy, prompt, response) - slow_logprob(stage.reference, prompt, response)
            assert abs(kl) > 1e-3
            rewards.append(sevens - 0.7 * float(kl))
    groups = [rewards[:4], rewards[4:]]
    expected = [reward - (sum(group) - reward) / 3 for group in groups for reward in group]
    assert batch.advantages.tolist() == pytest.approx(expected, abs=1e-4)


def test_equal_rewards_give_exactly_zero_and_groups_of_one_are_refused():
    assert advantages_of(attached(rloo(beta=0.0)), [0.1] * 4, [[0.0]] * 4) == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="stage.samples_per_prompt: got 1, expected at least 2"):
        rloo(samples_per_prompt=1)


def test_at_ratio_one_the_gradient_is_that_of_reinforce():
    """−1/N Σ A ∇ log π(y), every token's log-probability from a forward pass of its own."""
    stage, _, batch = collected()
    output = stage.compute_loss(batch)
    surrogate = 0.0
    for n, (advantage, response) in enumerate(zip(batch.advantages.tolist(), RESPONSES)):
        surrogate = surrogate - advantage * slow_logprob(stage.policy, PROMPTS[n // 4]["ids"], response) / 8
    expected = flat_gradient(stage, surrogate)
    assert output.weight == 8
    assert abs(output.loss) < 1e-6  # advantages of a group add up to 0
    assert output.metrics["ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert output.metrics["clip_fraction"] == 0
    assert expected.abs().max() > 0.1
    assert_close(flat_gradient(stage, output.loss), expected, atol=1e-5, rtol=1e-5)


def test_losses_clips_and_metrics_are_those_of_a_slow_loop_over_whole_responses():
    stage, _, batch = collected()
    batch = later(batch)
    with torch.no_grad():
        logprobs, entropies = response_logprobs(stage.policy, batch.packed, temperature=1.0)
    losses, clipped, ratios, approximate, entropy = [], [], [], [], []
    for n, response in enumerate(RESPONSES):
        steps = [float(logprobs[n, t] - batch.old_logprobs[n, t]) for t in range(len(response))]
        ratio, advantage = math.exp(sum(steps)), float(batch.advantages[n])
        plain, bounded = -advantage * ratio, -advantage * min(max(ratio, 0.8), 1.2)
        losses.append(max(plain, bounded))
        clipped.append(bounded > plain)
        ratios.append(ratio)
        approximate += [math.exp(step) - 1 - step for step in steps]
        entropy += [float(entropies[n, t]) for t in range(len(response))]
    output = stage.compute_loss(batch)
    assert 0 < sum(clipped) < 8
    assert float(output.loss.detach()) == pytest.approx(sum(losses) / 8, abs=1e-5)
    expected = {
        "clip_fraction": sum(clipped) / 8,
        "ratio_max": max(ratios),
        "approx_kl": sum(approximate) / len(approximate),
        "entropy": sum(entropy) / len(entropy),
    }
    assert {name: float(value) for name, value in output.metrics.items()} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("garbage", [math.nan, 1e9])
def test_the_contents_of_masked_entries_change_nothing(garbage):
    stage, _, batch = collected()
    batch = later(batch)
    assert not batch.mask.all()
    spoiled = garbled(batch, ("old_logprobs", "reference_logprobs"), garbage)
    clean, dirty = stage.compute_loss(batch), stage.compute_loss(spoiled)
    assert torch.equal(clean.loss, dirty.loss)
    assert same_bits(clean.metrics, dirty.metrics)
    assert torch.equal(flat_gradient(stage, clean.loss), flat_gradient(stage, dirty.loss))


def test_without_advantages_every_bit_of_the_policy_stays():
    _, _, batch = collected()
    stage = rloo()
    stage.configure_model()
    fit(stage, [later(batch)._replace(advantages=torch.zeros(8))], max_steps=1)
    assert all((p.grad == 0).all() for p in stage.policy.parameters())
    assert same_bits(weights(stage.policy), weights(causal()))


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "low", "high"), [(1000.0, 0.0, 0.1), (0.0, 0.15, 5.0)])
def test_a_huge_beta_keeps_the_policy_in_place_and_zero_lets_it_move(beta, low, high):
    logger = ListLogger()
    fit_prompts(rloo(beta=beta, epochs=1, optimizer=adam(1e-4)), 96, logger=logger)
    assert low <= max(logger["rollout/kl_k3"]) < high


def test_the_policy_learns_what_a_trivial_reward_pays_for():
    stage = rloo(sampling=Sampling(5), optimizer=adam(1e-2), minibatches=1, beta=0.02, missing_end_score=0.0)
    logger = ListLogger()
    fit_prompts(with_reward(stage, CountsSevens()), 40, logger=logger)
    sevens = [score / float(stage.score_scale) for score in logger["rollout/score"]]  # at most 4 before an end
    assert sum(sevens[:2]) / 2 < 0.7
    assert sum(sevens[-3:]) / 3 > 2
    assert same_bits(weights(stage.reference), weights(causal()))
