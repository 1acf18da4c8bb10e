"""What an update of PPO changes, and what it does not."""

import math

import pytest
import torch
from torch.testing import assert_close

from components.data.batches import WithText
from components.generation.generate import Sampling
from components.generation.responses import response_logprobs, response_values
from components.generation.rollout import Minibatch
from components.models.attention import attend
from components.stages.language import language_loss
from components.stages.ppo import PPO
from tests.kit.tiny_stages import (
    END,
    PROMPTS,
    STOPS,
    CountsSevens,
    ListLogger,
    adam,
    attached,
    causal,
    fit,
    fit_prompts,
    flat_gradient,
    garbled,
    keeper,
    kept,
    lm_batch,
    ppo,
    same_bits,
    weights,
    with_reward,
)

PER_TOKEN = ("advantages", "returns", "old_values", "old_logprobs", "reference_logprobs")


def later(batch: Minibatch) -> Minibatch:
    """The minibatch as it is after some updates: ratios, values and advantages all of some size."""
    generator = torch.Generator().manual_seed(0)
    shape = batch.mask.shape
    noise = {name: torch.randn(shape, generator=generator) * 0.3 for name in PER_TOKEN}
    return batch._replace(**{name: getattr(batch, name) + noise[name] * batch.mask for name in PER_TOKEN})


@pytest.fixture
def stage() -> PPO:
    return attached(ppo(epochs=1, minibatches=1))


@pytest.fixture
def batch(stage) -> Minibatch:
    [minibatch] = stage.collect(PROMPTS, 0)
    return later(minibatch)


@pytest.mark.parametrize("garbage", [math.nan, 1e9])
def test_the_contents_of_masked_entries_change_nothing(stage, batch, garbage):
    assert not batch.mask.all()
    clean, dirty = stage.compute_loss(batch), stage.compute_loss(garbled(batch, PER_TOKEN, garbage))
    assert torch.equal(clean.loss, dirty.loss)
    assert same_bits(clean.metrics, dirty.metrics)
    assert clean.weight == dirty.weight == int(batch.mask.sum())
    assert torch.equal(flat_gradient(stage, clean.loss), flat_gradient(stage, dirty.loss))


def test_all_networks_read_a_batch_under_one_mask(stage, batch, monkeypatch):
    built = []
    segments_of = attend.segments_of
    monkeypatch.setattr(attend, "segments_of", lambda layout: built.append(layout) or segments_of(layout))
    stage.compute_loss(other := later(stage.collect(PROMPTS, 1)[0]))  # collected: policy, reference, value and reward
    assert len(built) == 2 and built[1] is other.packed.layout
    stage.compute_loss(batch)
    assert len(built) == 3


def test_without_advantages_the_policy_has_no_gradient_and_keeps_every_bit(batch):
    stage = ppo(epochs=1, minibatches=1)
    stage.configure_model()
    before = {"policy": weights(stage.policy), "value": weights(stage.value)}
    fit(stage, [batch._replace(advantages=torch.zeros_like(batch.advantages))], max_steps=1)
    assert all((p.grad == 0).all() for p in stage.policy.parameters())
    assert same_bits(before["policy"], weights(stage.policy))
    assert not same_bits(before["value"], weights(stage.value))


def test_the_policy_learns_from_the_end_token(stage, batch):
    ends = batch.mask & torch.isin(batch.packed.response_ids, torch.tensor(STOPS))
    assert ends.any()
    only_ends = batch._replace(advantages=ends.float(), old_logprobs=batch.old_logprobs + 0.01 * ends)
    loss = stage.compute_loss(only_ends).loss
    [head] = torch.autograd.grad(loss, [stage.policy.lm_head.weight])
    assert head[list(STOPS)].abs().max() > 1e-4
    without = batch._replace(advantages=torch.zeros_like(batch.advantages))
    [head] = torch.autograd.grad(stage.compute_loss(without).loss, [stage.policy.lm_head.weight])
    assert (head == 0).all()


def test_the_losses_clips_and_metrics_are_those_of_a_slow_loop(stage, batch):
    with torch.no_grad():
        logprobs, _ = response_logprobs(stage.policy, batch.packed, temperature=1.0)
        values = response_values(stage.value, batch.packed)
    policy_losses, value_losses, clipped, kls, ratios = [], [], [], [], []
    for n, t in batch.mask.nonzero().tolist():
        old, advantage = float(batch.old_logprobs[n, t]), float(batch.advantages[n, t])
        ratio = math.exp(float(logprobs[n, t]) - old)
        plain, bounded = -advantage * ratio, -advantage * min(max(ratio, 0.8), 1.2)
        policy_losses.append(max(plain, bounded))
        clipped.append(bounded > plain)
        ratios.append(ratio)
        kls.append(ratio - 1 - math.log(ratio))
        value, old_value = float(values[n, t]), float(batch.old_values[n, t])
        near = min(max(value, old_value - 0.2), old_value + 0.2)
        target = float(batch.returns[n, t])
        value_losses.append(max((value - target) ** 2, (near - target) ** 2) / 2)
    count = len(ratios)
    output = stage.compute_loss(batch)
    expected = sum(policy_losses) / count + 0.1 * sum(value_losses) / count
    assert 0 < sum(clipped) < count
    assert output.weight == count
    assert float(output.loss.detach()) == pytest.approx(expected, abs=1e-5)
    assert float(output.metrics["policy_loss"]) == pytest.approx(sum(policy_losses) / count, abs=1e-5)
    assert float(output.metrics["value_loss"]) == pytest.approx(sum(value_losses) / count, rel=1e-5)
    assert float(output.metrics["clip_fraction"]) == pytest.approx(sum(clipped) / count, abs=1e-6)
    assert float(output.metrics["approx_kl"]) == pytest.approx(sum(kls) / count, abs=1e-6)
    assert float(output.metrics["ratio_max"]) == pytest.approx(max(ratios), rel=1e-5)


def test_pretraining_text_adds_its_loss_times_the_coefficient(batch):
    text = lm_batch([([1, 3], [4, 5, 6, END]), ([1, 7, 7], [8, END])])
    stage = attached(ppo(pretraining_coefficient=27.8))
    alone, mixed = stage.compute_loss(batch), stage.compute_loss(WithText(batch, text))
    language = language_loss(stage.policy, text)
    assert_close(mixed.loss, alone.loss + 27.8 * language.loss)
    assert_close(mixed.metrics["pretraining_loss"], language.loss.detach())
    expected = flat_gradient(stage, alone.loss) + 27.8 * flat_gradient(stage, language_loss(stage.policy, text).loss)
    assert_close(flat_gradient(stage, mixed.loss), expected, atol=27.8e-6, rtol=1e-5)  # rounding is magnified too


def test_a_coefficient_without_pretraining_text_is_refused(batch):
    with pytest.raises(ValueError, match="pretraining_coefficient is 1.0, but the data has no pretraining text"):
        fit(ppo(pretraining_coefficient=1.0), [batch], max_steps=1)


def test_policy_and_value_have_a_learning_rate_each(batch):
    stage = ppo(optimizer=adam(1e-3), value_lr=5e-3)
    run = fit(stage, [batch], max_steps=1)
    [optimizer] = run.optimizers
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in stage.policy.parameters()} == {1e-3}
    assert {rates[id(p)] for p in stage.value.parameters()} == {5e-3}
    assert not any(id(p) in rates for frozen in (stage.reference, stage.reward) for p in frozen.parameters())


def test_a_large_value_loss_does_not_shrink_the_policys_step(batch):
    """Policy and value are each clipped by their own norm."""
    louder = batch._replace(returns=batch.returns * 1e4)
    gradients = []
    for one in (batch, louder):
        stage = ppo(optimizer=keeper())
        run = fit(stage, [one], max_steps=1, gradient_clip_val=1.0)
        size = sum(p.numel() for p in stage.policy.parameters())
        gradients.append(kept(run)[:size])
    assert torch.equal(*gradients)
    assert gradients[0].norm() <= 1 + 1e-5


@pytest.mark.parametrize(("target_kl", "rollouts"), [(1e-6, 3), (1e6, 2)])
def test_a_rollouts_updates_end_early_once_the_policy_has_moved_too_far(target_kl, rollouts):
    """The first update's KL is 0, the second's is above 1.5e-6: then two of four updates per rollout."""
    logger = ListLogger()
    stage = ppo(epochs=4, minibatches=1, target_kl=target_kl)
    fit_prompts(stage, 6, logger=logger)
    assert len(logger["rollout/kl"]) == rollouts
    assert stage.rollout_is_spent == (target_kl < 1)


def test_a_kl_that_has_not_been_read_is_kept_in_a_checkpoint():
    stage, saved = ppo(target_kl=0.1), {"state_dict": {}}
    stage.on_load_checkpoint({"approx_kl": 0.2})
    stage.on_save_checkpoint(saved)
    assert saved["approx_kl"] == 0.2
    stage.on_load_checkpoint({})  # from before it was kept
    stage.on_save_checkpoint(saved)
    assert saved["approx_kl"] is None


def test_with_a_learning_rate_of_zero_nothing_moves():
    logger, stage = ListLogger(), ppo(optimizer=adam(0.0), value_lr=0.0, epochs=1, minibatches=1)
    fit_prompts(stage, 3, logger=logger)
    assert logger["rollout/kl"] == [0, 0, 0]
    assert max(abs(ratio - 1) for ratio in logger["train/ratio_max"]) < 2e-6
    assert same_bits(weights(stage.policy), weights(causal()))


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "low", "high"), [(1000.0, 0.0, 0.05), (0.0, 0.15, 1.0)])
def test_a_huge_beta_keeps_the_policy_in_place_and_zero_lets_it_move(beta, low, high):
    logger = ListLogger()
    fit_prompts(ppo(beta=beta, epochs=1, optimizer=adam(1e-4)), 48, per_rollout=64, logger=logger)
    assert low <= max(logger["rollout/kl_k3"]) < high
    assert max(map(abs, logger["rollout/kl"])) < max(high, 0.05)


def test_the_policy_learns_what_a_trivial_reward_pays_for():
    stage = ppo(
        sampling=Sampling(5), optimizer=adam(1e-2), value_lr=3e-3, minibatches=1, beta=0.02, missing_end_score=0.0
    )
    with_reward(stage, CountsSevens())
    logger = ListLogger()
    fit_prompts(stage, 48, per_rollout=32, logger=logger)
    sevens = [score / float(stage.score_scale) for score in logger["rollout/score"]]  # at most 4 before an end
    assert sum(sevens[:3]) / 3 < 0.5
    assert sum(sevens[-3:]) / 3 > 2
