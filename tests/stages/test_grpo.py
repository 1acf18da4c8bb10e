"""GRPO: each response is compared with the others to its prompt, and losses are averaged as the variant says."""

import math

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.testing import assert_close

from components.data.loading.experience import ExperienceLoader
from components.generation.generate import Sampling
from components.generation.responses import response_logprobs
from components.generation.rollout import Minibatch
from components.stages.grpo import GRPO
from components.training.contract import Spent
from tests.kit.several import together
from tests.kit.tiny_stages import (
    END,
    PROMPTS,
    Batches,
    CountsSevens,
    ListLogger,
    adam,
    attached,
    by_prompt,
    causal,
    experience_of,
    fit,
    fit_prompts,
    flat_gradient,
    garbled,
    given,
    grpo,
    moved,
    quiet_fit,
    same_bits,
    trainer,
    weights,
    with_reward,
)

VARIANTS = ("grpo", "dapo", "dr_grpo", "gspo", "cispo")
PER_TOKEN = ("advantages", "old_logprobs", "reference_logprobs")
# to the first prompt 2, 0, 0 and 2 sevens, to the second 1 each
RESPONSES = ([7, 7, END], [3, END], [4, 5, 6, END], [7, 3, 7, END], [7, END], [7, END], [3, 7, END], [7, 4, END])


def collected(**changes) -> tuple[GRPO, ListLogger, Minibatch]:
    """A stage that counts sevens, what it logged, and its one minibatch of the eight given responses."""
    logger = ListLogger()
    settings = dict(epochs=1, minibatches=1, score_scale=1.0) | changes
    stage = with_reward(grpo(given(GRPO, *RESPONSES), **settings), CountsSevens())
    [batch] = attached(stage, logger=logger).collect(PROMPTS[:2], 0)
    return stage, logger, batch


def later(batch: Minibatch) -> Minibatch:
    """The minibatch as it is after some updates: ratios of some size."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch.mask.shape, generator=generator) * 0.3 * batch.mask
    return batch._replace(old_logprobs=batch.old_logprobs + noise)


@pytest.mark.parametrize(
    ("variant", "expected"),
    # r = 2, 0, 0, 2: mean 1, unbiased deviation √(4/3), ε = 1e-4
    [("grpo", 1 / (math.sqrt(4 / 3) + 1e-4)), ("dapo", 1 / (math.sqrt(4 / 3) + 1e-4)), ("dr_grpo", 1.0)],
)
def test_every_token_of_a_response_has_its_advantage_over_its_own_group(variant, expected):
    _, logger, batch = collected(variant=variant)
    for n, advantage in enumerate([expected, -expected, -expected, expected, 0.0, 0.0, 0.0, 0.0]):
        assert_close(batch.advantages[n], torch.full_like(batch.advantages[n], advantage), atol=1e-6, rtol=0)
    assert (batch.advantages[4:] == 0).all()  # exactly, or noise over ε would be learned
    assert logger["rollout/equal_groups"] == [0.5]


def test_correct_and_wrong_answers_have_the_advantages_worked_by_hand():
    """r = 1, 0, 0, 1."""
    stage = grpo()
    mask = torch.ones(4, 3, dtype=torch.bool)
    found = attached(stage).advantages(experience_of(torch.tensor([1.0, 0.0, 0.0, 1.0]), mask)).advantages
    worked_out = torch.tensor([0.8658754298, -0.8658754298, -0.8658754298, 0.8658754298])
    assert_close(found, worked_out[:, None].expand(4, 3), atol=1e-6, rtol=0)


def test_permuting_a_group_permutes_its_advantages_and_leaves_the_others():
    stage = attached(grpo())
    rewards, mask = torch.tensor([0.3, -1.0, 2.5, 0.7, 1.0, 5.0, 4.0, -3.0]), torch.ones(8, 1, dtype=torch.bool)
    order = torch.tensor([2, 0, 3, 1, 4, 5, 6, 7])
    plain = stage.advantages(experience_of(rewards, mask)).advantages
    permuted = stage.advantages(experience_of(rewards[order], mask)).advantages
    assert_close(permuted, plain[order], atol=1e-6, rtol=0)
    assert_close(plain.view(2, 4).sum(1), torch.zeros(2), atol=1e-6, rtol=0)


def test_groups_of_one_and_unknown_variants_are_refused():
    with pytest.raises(ValueError, match="stage.samples_per_prompt: got 1, expected a group of at least 2"):
        grpo(samples_per_prompt=1)
    with pytest.raises(ValueError, match="stage.variant: got 'ppo', expected one of grpo, dapo, dr_grpo, gspo, cispo"):
        grpo(variant="ppo")


EQUAL, DIFFERENT = [[7, END], [7, END]], [[7, END], [3, END]]
LONG = [[7, 3, 7, 3, END], [3, END]]


@pytest.mark.parametrize(
    ("refill", "counts", "refilled", "taught"),
    [
        (0, [], None, 2),
        (1, [2], 0.25, 3),
        (2, [2, 1], 0.5, 4),
        (9, [2, 1], 0.5, 4),
    ],
)
def test_groups_with_equal_rewards_are_replaced_until_the_rollout_is_full_or_the_rounds_are_over(
    refill, counts, refilled, taught
):
    """Of the prompts that end in 3, 8, 6 and 11 the second and the last teach nothing; next come 15, 8 and then 12."""
    kinds = {3: DIFFERENT, 6: DIFFERENT, 15: LONG, 12: DIFFERENT, 8: EQUAL, 11: EQUAL}
    prompts = {prompt["ids"][-1]: prompt for prompt in PROMPTS}
    coming, asked = [prompts[15], prompts[8], prompts[12]], []

    def further(count: int) -> list[dict]:
        asked.append(count)
        return [coming.pop(0) for _ in range(count)]

    logger = ListLogger()
    settings = dict(epochs=1, minibatches=1, score_scale=1.0, samples_per_prompt=2, refill=refill)
    stage = attached(with_reward(grpo(by_prompt(kinds), **settings), CountsSevens()), logger=logger)
    [batch] = stage.collect([prompts[last] for last in (3, 8, 6, 11)], 0, further)
    assert asked == counts and logger["rollout/equal_groups"] == [0.5]
    assert ("rollout/refilled" in logger.logged) == (refilled is not None)
    if refilled is not None:
        assert logger["rollout/refilled"] == [refilled]
    assert len(batch.mask) == 8  # the loss is over four groups
    learned = (batch.advantages != 0).any(1).view(4, 2).all(1)
    assert int(learned.sum()) == taught
    trained = [row[keep].tolist() for row, keep in zip(batch.packed.response_ids, batch.mask)]
    order = [3, 15 if refill else 8, 6, 12 if refill > 1 else 11]
    assert trained == [one for last in order for one in kinds[last]]
    metrics = stage.compute_loss(batch).metrics
    assert abs(metrics["ratio_max"] - 1) < 2e-6 and metrics["clip_fraction"] == 0


def test_a_refilled_rollout_costs_another_forward_pass_of_policy_and_reference():
    """First 16 tokens after prompts of 2, 6, 4 and 5; then 7 and 4 after 2 and 6; 2, 4 and 5 stay, next to the 2 with
    7 tokens, and are read again."""
    kinds = {3: DIFFERENT, 6: DIFFERENT, 15: LONG, 8: EQUAL, 11: EQUAL}
    prompts = {prompt["ids"][-1]: prompt for prompt in PROMPTS}
    settings = dict(epochs=1, minibatches=1, score_scale=1.0, samples_per_prompt=2, refill=1)
    stage = attached(with_reward(grpo(by_prompt(kinds), **settings), CountsSevens()))
    stage.collect([prompts[last] for last in (3, 8, 6, 11)], 0, lambda count: [prompts[15], prompts[8]])
    sampled_and_read, read_again = (16 + 17) + (11 + 8), (4 + 7 + 4 + 4) + (2 + 2 + 4 + 5)
    forward = stage.policy.flops_per_token.forward
    assert stage.spent() == Spent(16 + 11, (3 * sampled_and_read + 2 * read_again) * forward)


@pytest.mark.slow
def test_two_processes_refill_in_step(tmp_path):
    """Each finds other groups equal; both take as many further prompts, and end with the same policy."""

    def work(rank: int) -> tuple:
        stage = grpo(reward=CountsSevens, score_scale=1.0, samples_per_prompt=2, refill=3)
        run = trainer(max_steps=12, limit_val_batches=0, strategy=DDPStrategy(), devices=2)
        loader = ExperienceLoader(PROMPTS, prompts_per_rollout=4, seed=0, trainer=run)
        taken, take = [], loader.take_further
        loader.take_further = lambda count: taken.append((loader.rollout, count)) or take(count)
        quiet_fit(run, stage, loader, Batches([]))
        return taken, loader.further, weights(stage.policy)

    (taken, further, policy), other = together(work, tmp_path)
    assert taken == other[0] and further == other[1] == 2 * sum(count for _, count in taken) > 0
    assert same_bits(policy, other[2])


def test_only_dapo_refills_by_itself():
    assert {variant: grpo(variant=variant, refill=None).refill for variant in VARIANTS} == {
        **dict.fromkeys(VARIANTS, 0),
        "dapo": 10,
    }
    assert grpo(variant="dapo", refill=0).refill == 0


@pytest.mark.parametrize(
    ("settings", "low", "high"),
    [
        ({"variant": "grpo"}, 0.2, 0.2),
        ({"variant": "dapo"}, 0.2, 0.28),  # Yu et al. 2025, section 4.1
        ({"variant": "dr_grpo"}, 0.2, 0.2),
        ({"variant": "gspo"}, 3e-4, 4e-4),  # Zheng et al. 2025, section 5.1
        ({"variant": "cispo"}, 1.0, 4.0),
        ({"variant": "gspo", "clip": 0.1}, 0.1, 0.1),
        ({"variant": "gspo", "clip": 0.1, "clip_high": 0.3}, 0.1, 0.3),
        ({"variant": "dapo", "clip_high": 0.4}, 0.2, 0.4),
    ],
)
def test_the_bounds_of_ratios_are_those_given_or_else_those_published_for_the_variant(settings, low, high):
    stage = grpo(**{"clip": None} | settings)
    assert (stage.clip_low, stage.clip_high) == (low, high)


@pytest.mark.parametrize(
    ("variant", "expected", "weight"),
    [("grpo", 1.5, 2), ("dapo", 1.6666666667, 6), ("dr_grpo", 0.625, 2), ("gspo", 1.5, 2)],
)
def test_a_variant_is_an_aggregation_of_token_losses(variant, expected, weight):
    """Responses with token losses 1, 1 and 2, 2, 2, 2, at most eight tokens each."""
    stage = attached(
        grpo(
            given(GRPO, [3, END], [4, 5, 6, END]),
            variant=variant,
            samples_per_prompt=2,
            beta=0.0,
            epochs=1,
            minibatches=1,
            sampling=Sampling(8),
        )
    )
    [batch] = stage.collect(PROMPTS[:1], 0)
    costs = torch.tensor([[-1.0], [-2.0]]).expand(2, 4)  # at ratio 1 a token's loss is −A
    output = stage.compute_loss(batch._replace(advantages=costs))
    assert float(output.loss.detach()) == pytest.approx(expected, abs=1e-6)
    assert output.weight == weight


def test_on_policy_the_loss_is_zero_but_its_gradient_is_the_policy_gradient():
    """Ratio 1, and the advantages of a group add up to 0: −Σ A ∇ mean log π over the responses."""
    stage, _, batch = collected(beta=0.0)
    output = stage.compute_loss(batch)
    logprobs, _ = response_logprobs(stage.policy, batch.packed, temperature=1.0)
    policy_gradient = 0.0
    for n, response in enumerate(RESPONSES):
        policy_gradient = policy_gradient - batch.advantages[n, 0] * logprobs[n].sum() / len(response) / 8
    expected = flat_gradient(stage, policy_gradient)
    assert abs(output.loss) < 1e-6
    assert output.metrics["ratio_max"] == pytest.approx(1.0, abs=1e-6)
    assert output.metrics["clip_fraction"] == output.metrics["kl_loss"] == 0
    assert expected.abs().max() > 1e-2
    assert_close(flat_gradient(stage, output.loss), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", ["dapo", "dr_grpo"])
def test_of_unequal_lengths_the_other_ways_to_average_have_a_loss_at_ratio_one(variant):
    """TRL #2995: the value of the loss does not show whether anything is learned."""
    stage, _, batch = collected(variant=variant, beta=0.0)
    assert abs(stage.compute_loss(batch).loss) > 1e-2


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_clips_and_metrics_are_those_of_a_slow_loop(variant):
    stage, _, batch = collected(variant=variant, beta=0.3, clip_high=0.28)
    moved(stage)
    batch = later(batch)
    with torch.no_grad():
        logprobs, entropies = response_logprobs(stage.policy, batch.packed, temperature=1.0)
    rows, clipped, ratios, approximate, entropy = [], [], [], [], []
    for n, response in enumerate(RESPONSES):
        rows.append([])
        log_ratios = [float(logprobs[n, t] - batch.old_logprobs[n, t]) for t in range(len(response))]
        for t, log_ratio in enumerate(log_ratios):
            advantage, reference = float(batch.advantages[n, t]), float(batch.reference_logprobs[n, t])
            ratio = math.exp(sum(log_ratios) / len(log_ratios) if variant == "gspo" else log_ratio)
            bounded = min(max(ratio, 0.8), 1.28)
            if variant == "cispo":
                loss, outside = -bounded * advantage * float(logprobs[n, t]), bounded != ratio
            else:
                loss, outside = max(-advantage * ratio, -advantage * bounded), -advantage * bounded > -advantage * ratio
            excess = reference - float(logprobs[n, t])
            rows[-1].append((loss, math.exp(excess) - 1 - excess))
            clipped.append(outside)
            ratios.append(math.exp(log_ratio))
            approximate.append(math.exp(log_ratio) - 1 - log_ratio)
            entropy.append(float(entropies[n, t]))

    def average(part: int) -> float:
        sums, lengths = [sum(token[part] for token in row) for row in rows], [len(row) for row in rows]
        if variant in ("grpo", "gspo"):
            return sum(one / length for one, length in zip(sums, lengths)) / 8
        return sum(sums) / (8 * 6 if variant == "dr_grpo" else sum(lengths))  # at most six tokens

    output = stage.compute_loss(batch)
    count = len(ratios)
    assert 0 < sum(clipped) < count
    assert any(0.8 < ratio < 1.28 for ratio in ratios) and max(ratios) > 1.28 and min(ratios) < 0.8
    expected = {
        "policy_loss": average(0),
        "kl_loss": average(1),
        "clip_fraction": sum(clipped) / count,
        "approx_kl": sum(approximate) / count,
        "ratio_max": max(ratios),
        "entropy": sum(entropy) / count,
    }
    assert {name: float(value) for name, value in output.metrics.items()} == pytest.approx(expected, abs=1e-5)
    assert float(output.loss.detach()) == pytest.approx(average(0) + 0.3 * average(1), abs=1e-5)
    assert output.weight == (count if variant in ("dapo", "cispo") else 8)


def test_beyond_its_bounds_a_token_teaches_nothing():
    """Ratio 2 with A > 0 and ratio ½ with A < 0 have gone far enough; the reverse has not."""
    stage, _, batch = collected(beta=0.0)
    far = torch.full_like(batch.old_logprobs, math.log(2))
    better = (batch.advantages > 0).float() - (batch.advantages < 0).float()
    enough = batch._replace(old_logprobs=batch.old_logprobs - far * better)
    short = batch._replace(old_logprobs=batch.old_logprobs + far * better)
    assert (flat_gradient(stage, stage.compute_loss(enough).loss) == 0).all()
    assert flat_gradient(stage, stage.compute_loss(short).loss).abs().max() > 1e-2
    learned_from = float((batch.advantages != 0)[batch.mask].float().mean())
    assert stage.compute_loss(enough).metrics["clip_fraction"] == pytest.approx(learned_from)


def test_beyond_its_bounds_a_weighted_token_teaches_as_much_as_at_the_bound():
    """CISPO at ratios 2 and ½, bounded to 1.28 and .8: the gradient of GRPO at those ratios, unclipped."""
    stage, _, batch = collected(variant="cispo", beta=0.0, clip_high=0.28)
    better = (batch.advantages > 0).float() - (batch.advantages < 0).float()
    beyond = batch._replace(old_logprobs=batch.old_logprobs - math.log(2) * better)
    at_bound = torch.where(better > 0, math.log(1.28), math.log(0.8))
    wide, _, _ = collected(variant="dapo", beta=0.0, clip=0.3)
    bounded = batch._replace(old_logprobs=batch.old_logprobs - at_bound)
    expected = flat_gradient(wide, wide.compute_loss(bounded).loss)
    output = stage.compute_loss(beyond)
    assert expected.abs().max() > 1e-2
    assert_close(flat_gradient(stage, output.loss), expected, atol=1e-6, rtol=1e-5)
    assert output.metrics["clip_fraction"] == pytest.approx(float((better != 0)[batch.mask].float().mean()))


def test_the_kl_in_the_loss_pulls_each_token_back_to_the_reference():
    """∇ k3 = (1 − π_ref/π) ∇ log π: tokens that became too likely go down, those too unlikely go up."""
    stage, _, batch = collected(beta=1.0)
    moved(stage)
    batch = batch._replace(advantages=torch.zeros_like(batch.advantages))
    logprobs, _ = response_logprobs(stage.policy, batch.packed, temperature=1.0)
    pull = 0.0
    for n, response in enumerate(RESPONSES):
        for t in range(len(response)):
            excess = 1 - math.exp(float(batch.reference_logprobs[n, t] - logprobs[n, t].detach()))
            assert abs(excess) > 1e-3
            pull = pull + excess * logprobs[n, t] / len(response) / 8
    expected = flat_gradient(stage, pull)
    output = stage.compute_loss(batch)
    found = flat_gradient(stage, output.loss)
    assert expected.abs().max() > 1e-2
    assert_close(found, expected, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        parameters = list(stage.policy.parameters())
        for parameter, step in zip(parameters, found.split([p.numel() for p in parameters])):
            parameter.sub_(1e-3 * step.view_as(parameter))
    assert stage.compute_loss(batch).metrics["kl_loss"] < output.metrics["kl_loss"]


@pytest.mark.parametrize("garbage", [math.nan, 1e9])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_contents_of_masked_entries_change_nothing(variant, garbage):
    stage, _, batch = collected(variant=variant, beta=0.3)
    batch = later(batch)
    assert not batch.mask.all()
    moved(stage)
    clean, dirty = stage.compute_loss(batch), stage.compute_loss(garbled(batch, PER_TOKEN, garbage))
    assert torch.equal(clean.loss, dirty.loss)
    assert same_bits(clean.metrics, dirty.metrics)
    assert clean.weight == dirty.weight
    assert torch.equal(flat_gradient(stage, clean.loss), flat_gradient(stage, dirty.loss))


@pytest.mark.parametrize("variant", VARIANTS)
def test_groups_with_equal_rewards_leave_every_bit_of_the_policy(variant):
    """Rewards 0.1 each: their mean is rounded, so the difference from it need not be 0."""
    alike = experience_of(torch.full((8,), 0.1), torch.ones(8, 6, dtype=torch.bool))
    source, _, batch = collected(variant=variant, beta=0.0)
    advantages = source.advantages(alike).advantages[:, : batch.mask.shape[1]]
    assert (advantages == 0).all()
    stage = grpo(variant=variant, beta=0.0)
    stage.configure_model()
    fit(stage, [later(batch)._replace(advantages=advantages)], max_steps=1)
    assert all((p.grad == 0).all() for p in stage.policy.parameters())
    assert same_bits(weights(stage.policy), weights(causal()))


@pytest.mark.parametrize("minibatches", [1, 3])
def test_the_first_ratio_is_one_and_the_first_kl_zero_even_if_minibatches_split_groups(minibatches):
    """Three minibatches of 11, 11 and 10 responses: advantages are those of whole groups all the same."""
    whole = attached(grpo(epochs=1, minibatches=1))
    [known] = whole.collect(PROMPTS, 0)
    stage = attached(grpo(epochs=2, minibatches=minibatches))
    parts = stage.collect(PROMPTS, 0)
    assert len(parts) == 2 * minibatches
    for part in parts:
        metrics = stage.compute_loss(part).metrics
        assert abs(metrics["ratio_max"] - 1) < 2e-6
        assert metrics["clip_fraction"] == 0 and metrics["kl_loss"] < 1e-10 and abs(metrics["approx_kl"]) < 1e-10
    advantages = torch.cat([part.advantages[:, 0] for part in parts[:minibatches]])
    assert_close(advantages, known.advantages[:, 0], atol=1e-5, rtol=0)
    assert_close(advantages.view(8, 4).sum(1), torch.zeros(8), atol=1e-5, rtol=0)


def test_a_group_written_twice_changes_nothing_in_the_mean():
    stage, _, batch = collected(beta=0.3)
    batch = later(batch)
    per_token = {name: torch.cat([getattr(batch, name)] * 2) for name in PER_TOKEN}
    ids, mask = (torch.cat([one, one]) for one in (batch.packed.response_ids, batch.mask))
    known = experience_of(torch.zeros(16), mask, response_ids=ids, **per_token)
    prompts = [PROMPTS[0]["ids"]] * 4 + [PROMPTS[1]["ids"]] * 4
    [twice] = stage.split(prompts * 2, known, 0)
    one, two = stage.compute_loss(batch), stage.compute_loss(twice)
    assert two.weight == 2 * one.weight
    assert_close(two.loss, one.loss, atol=1e-5, rtol=0)
    assert_close(flat_gradient(stage, two.loss), flat_gradient(stage, one.loss), atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", ["grpo", *(pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS[1:])])
def test_the_policy_learns_what_a_trivial_reward_pays_for(variant):
    stage = grpo(
        sampling=Sampling(5), optimizer=adam(5e-3), minibatches=1, beta=0.02, missing_end_score=0.0, variant=variant
    )
    logger = ListLogger()
    fit_prompts(with_reward(stage, CountsSevens()), 60, logger=logger)
    sevens = [score / float(stage.score_scale) for score in logger["rollout/score"]]  # at most 4 before an end
    assert sum(sevens[:2]) / 2 < 0.7
    assert sum(sevens[-3:]) / 3 > 2
    assert same_bits(weights(stage.reference), weights(causal()))


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "low", "high"), [(1000.0, 0.0, 0.1), (0.0, 0.15, 5.0)])
def test_a_huge_beta_keeps_the_policy_in_place_and_zero_lets_it_move(beta, low, high):
    logger = ListLogger()
    fit_prompts(grpo(beta=beta, epochs=1, optimizer=adam(1e-4)), 96, logger=logger)
    assert low <= max(logger["rollout/kl_k3"]) < high
