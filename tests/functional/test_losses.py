import itertools
import math

import pytest
import torch

from components.functional.losses import (
    aggregate, causal_lm, clipped_surrogate, dpo, kwise_ranking, pairwise_ranking, ppo_policy, ppo_value,
    ranking_pairs,
)

PLAIN = {"margin": 0.0, "label_smoothing": 0.0, "centering": 0.0}
CLIP = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def close(got, expected, atol=1e-8):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


def all_true(x):
    return torch.ones_like(x, dtype=torch.bool)


# causal LM

def test_causal_lm_is_one_mean_over_all_counted_tokens_however_rows_are_split():
    losses = doubles([2, 4, 9, 9, 9, 9], [1, 1, 1, 1, 1, 1])
    mask = torch.tensor([[1, 1, 0, 0, 0, 0], [1] * 6]).bool()
    close(causal_lm(-losses, mask), scalar(1.5))
    mean_of_means = (causal_lm(-losses[:1], mask[:1]) + causal_lm(-losses[1:], mask[1:])) / 2
    close(mean_of_means, scalar(2.0))  # the accumulation bug: why stages weigh micro-batches by their tokens
    weighed = 2 / 8 * causal_lm(-losses[:1], mask[:1]) + 6 / 8 * causal_lm(-losses[1:], mask[1:])
    close(weighed, scalar(1.5))


def test_losses_of_nothing_are_zero_not_nan():
    none = torch.zeros(2, 3, dtype=torch.bool)
    x = torch.randn(2, 3, requires_grad=True)
    empty = torch.zeros(0, requires_grad=True)
    kwise, num_groups = kwise_ranking(empty, empty, torch.zeros(0, dtype=torch.int64))
    assert num_groups == 0
    ways = ["sequence_mean", "token_mean", "fixed_length", "sequence_sum"]
    losses = [
        causal_lm(x, none),
        ppo_policy(x, x, x, none, **CLIP)[0],
        ppo_value(x, x, x, none, clip_range=0.2)[0],
        pairwise_ranking(empty, empty, **PLAIN),
        dpo(empty, empty, empty, empty, beta=0.1, variant="sigmoid", label_smoothing=0.0).loss,
        kwise,
        *(aggregate(x, none, how=how, max_length=8) for how in ways),
    ]
    for loss in losses:
        assert loss.item() == 0.0
        loss.backward()  # an empty rank must still take part in the backward pass
    assert torch.equal(x.grad, torch.zeros(2, 3))


# ranking

@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [0.3132616875, 0.9740769842, 0.6931471806]),
        ({"margin": 1.0}, [0.6931471806, 1.701413278, 1.3132616875]),
        ({"label_smoothing": 0.1}, [0.4132616875, 0.9240769842, 0.6931471806]),
    ],
)
def test_pairwise_ranking_pair_by_pair_and_on_average(options, expected):
    chosen, rejected = doubles(2, 0.5, 0), doubles(1, 1, 0)
    options = {**PLAIN, **options}
    for i in range(3):
        close(pairwise_ranking(chosen[i : i + 1], rejected[i : i + 1], **options), scalar(expected[i]))
    close(pairwise_ranking(chosen, rejected, **options), scalar(sum(expected) / 3))


def test_centering_adds_the_mean_square_of_the_sum_of_scores():
    chosen, rejected = doubles(2, 0.5, 0), doubles(1, 1, 0)
    centred = pairwise_ranking(chosen, rejected, margin=0.0, label_smoothing=0.0, centering=0.01)
    close(centred - pairwise_ranking(chosen, rejected, **PLAIN), scalar(0.0375))


def test_each_pair_may_have_its_own_margin():
    chosen, rejected = doubles(2, 2), doubles(1, 1)
    got = pairwise_ranking(chosen, rejected, margin=doubles(0, 1), label_smoothing=0.0, centering=0.0)
    close(got, scalar((0.3132616875 + 0.6931471806) / 2))


def test_a_hopeless_pair_has_a_finite_loss_and_a_gradient_of_one_in_float32():
    chosen = torch.tensor([-100.0], requires_grad=True)
    loss = pairwise_ranking(chosen, torch.tensor([100.0]), **PLAIN)
    loss.backward()
    assert loss.item() == 200.0
    assert chosen.grad.item() == -1.0


def test_half_precision_scores_are_compared_in_float32():
    chosen, rejected = torch.tensor([8.0]).bfloat16(), torch.tensor([7.96875]).bfloat16()
    assert pairwise_ranking(chosen, rejected, **PLAIN).item() == pytest.approx(math.log1p(math.exp(-0.03125)))


def test_only_differences_of_scores_matter_and_a_swapped_pair_has_the_loss_of_minus_delta():
    chosen, rejected = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = pairwise_ranking(chosen, rejected, **PLAIN)
    close(pairwise_ranking(chosen + 5, rejected + 5, **PLAIN), loss)
    delta = (chosen - rejected).tolist()
    close(loss, scalar(sum(math.log1p(math.exp(-d)) for d in delta) / 7))
    close(pairwise_ranking(rejected, chosen, **PLAIN), scalar(sum(math.log1p(math.exp(d)) for d in delta) / 7))


def test_the_best_loss_under_flipped_labels_is_the_entropy_of_the_flip():
    for flip, entropy in [(0.1, 0.3250829734), (0.25, 0.5623351446)]:
        best = doubles(math.log((1 - flip) / flip))
        got = pairwise_ranking(best, doubles(0.0), margin=0.0, label_smoothing=flip, centering=0.0)
        close(got, scalar(entropy))


def kwise_by_hand(scores, ranks, groups):
    """(mean of per-prompt means, mean over all pairs), one pair at a time."""
    losses = {}
    for i, j in itertools.permutations(range(len(scores)), 2):
        if groups[i] == groups[j] and ranks[i] < ranks[j]:
            losses.setdefault(groups[i], []).append(math.log1p(math.exp(scores[j] - scores[i])))
    means = [sum(x) / len(x) for x in losses.values()]
    pairs = sum(losses.values(), [])
    return sum(means) / len(means), sum(pairs) / len(pairs)


def test_kwise_ranking_of_four_by_hand_with_its_gradient():
    scores = doubles(3, 1, 0, -1).requires_grad_()
    loss, num_groups = kwise_ranking(scores, torch.arange(4), torch.zeros(4, dtype=torch.int64))
    loss.backward()
    terms = [0.126928011, 0.0485873516, 0.0181499279, 0.3132616875, 0.126928011, 0.3132616875]
    assert num_groups == 1
    close(loss, scalar(0.1578527794))
    close(loss, scalar(sum(terms) / 6))
    close(scores.grad, doubles(-0.0307691675, -0.0448235702, 0.0079043122, 0.0676884256))
    close(scores.grad.sum(), scalar(0.0))


def test_prompts_weigh_the_same_however_many_completions_they_have():
    scores, ranks = doubles(3, 1, 0, -1, 0.5, 0), torch.tensor([0, 1, 2, 3, 0, 1])
    groups = torch.tensor([7, 7, 7, 7, 2, 2])  # any numbers do
    loss, num_groups = kwise_ranking(scores, ranks, groups)
    ours, over_pairs = kwise_by_hand(scores.tolist(), ranks.tolist(), groups.tolist())
    assert num_groups == 2
    close(loss, scalar(0.3159648818))
    assert ours == pytest.approx(0.3159648818) and over_pairs == pytest.approx(0.2030276658)


def test_ties_make_no_pair_and_a_prompt_of_ties_does_not_count():
    ranks, groups = torch.tensor([0.0, 0.5, 0.5, 1.0, 1.0]), torch.tensor([0, 0, 0, 1, 1])
    better, worse, group = ranking_pairs(ranks, groups)
    assert sorted(zip(better.tolist(), worse.tolist(), group.tolist())) == [(0, 1, 0), (0, 2, 0)]
    loss, num_groups = kwise_ranking(doubles(1, 0, 0, 9, -9), ranks, groups)
    assert num_groups == 1
    close(loss, scalar(0.3132616875))


def test_kwise_equals_the_slow_loop_and_sees_neither_order_nor_a_constant():
    generator = torch.Generator().manual_seed(4)
    scores = torch.randn(20, dtype=torch.float64, generator=generator)
    ranks = torch.randint(0, 4, (20,), generator=generator)
    groups = torch.randint(0, 5, (20,), generator=generator)
    loss, _ = kwise_ranking(scores, ranks, groups)
    close(loss, scalar(kwise_by_hand(scores.tolist(), ranks.tolist(), groups.tolist())[0]))
    order = torch.randperm(20, generator=generator)
    close(kwise_ranking(scores[order], ranks[order], groups[order])[0], loss)
    close(kwise_ranking(scores + 3, ranks, groups)[0], loss)
    assert kwise_ranking(-scores, ranks, groups)[0] != loss


def test_kwise_of_pairs_is_the_pairwise_loss():
    chosen, rejected = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ranks, groups = torch.tensor([0, 1]).repeat_interleave(6), torch.arange(6).repeat(2)
    loss, num_groups = kwise_ranking(torch.cat([chosen, rejected]), ranks, groups)
    assert num_groups == 6
    close(loss, pairwise_ranking(chosen, rejected, **PLAIN))


def test_one_forward_per_completion_has_the_loss_and_gradient_of_one_per_pair():
    features = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    shared = torch.ones(3, dtype=torch.float64, requires_grad=True)
    kwise_ranking(features @ shared, torch.arange(4), torch.zeros(4, dtype=torch.int64))[0].backward()
    separate = torch.ones(3, dtype=torch.float64, requires_grad=True)
    losses = [
        pairwise_ranking(features[i : i + 1] @ separate, features[j : j + 1] @ separate, **PLAIN)
        for i, j in itertools.combinations(range(4), 2)
    ]
    torch.stack(losses).mean().backward()
    close(shared.grad, separate.grad)


# PPO

OLD = doubles(0.5, 0.5, 0.5, 0.5, 0.2).log()
NEW = doubles(0.7, 0.7, 0.3, 0.3, 0.2).log()
ADVANTAGES = doubles(1, -1, 1, -1, 2)


def test_ppo_policy_by_hand():
    new = NEW.clone().requires_grad_()
    losses, clipped = clipped_surrogate(new, OLD, ADVANTAGES, all_true(OLD), **CLIP)
    close(losses, doubles(-1.2, 1.4, -0.6, 0.8, -2))
    losses.sum().backward()
    close(new.grad, doubles(0, 1.4, -0.6, 0, -2))
    assert clipped.tolist() == [True, False, False, True, False]
    loss, clip_fraction = ppo_policy(NEW, OLD, ADVANTAGES, all_true(OLD), **CLIP)
    close(loss, scalar(-0.32))
    close(clip_fraction, scalar(0.4))  # not the .8 of ratios outside the band
    first_four = torch.tensor([1, 1, 1, 1, 0]).bool()
    close(ppo_policy(NEW, OLD, ADVANTAGES, first_four, **CLIP)[0], scalar(0.1))


def test_clip_higher_moves_only_the_upper_bound():
    losses, _ = clipped_surrogate(
        NEW, OLD, ADVANTAGES, all_true(OLD), clip_low=0.2, clip_high=0.28, dual_clip=None
    )
    close(losses, doubles(-1.28, 1.4, -0.6, 0.8, -2))


def test_dual_clip_bounds_the_loss_of_a_bad_token_that_became_likely():
    old, new, advantage = doubles(0.1).log(), doubles(0.5).log().requires_grad_(), doubles(-1)
    plain, _ = clipped_surrogate(new, old, advantage, all_true(old), **CLIP)
    bounded, clipped = clipped_surrogate(
        new, old, advantage, all_true(old), clip_low=0.2, clip_high=0.2, dual_clip=3.0
    )
    close(plain, doubles(5))
    close(bounded, doubles(3))
    bounded.sum().backward()
    assert clipped.item() and new.grad.item() == 0.0
    # a good token is left as it was
    good, _ = clipped_surrogate(
        new, old, -advantage, all_true(old), clip_low=0.2, clip_high=0.2, dual_clip=3.0
    )
    close(good, doubles(-1.2))


def test_on_the_first_minibatch_nothing_is_clipped_and_the_gradient_is_the_policy_gradient():
    new = OLD.clone().requires_grad_()
    loss, clip_fraction = ppo_policy(new, OLD, ADVANTAGES, all_true(OLD), **CLIP)
    loss.backward()
    assert clip_fraction.item() == 0.0
    close(new.grad, -ADVANTAGES / 5)


def test_no_advantage_no_gradient_and_weights_identical_to_the_bit_after_a_step():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = logits.detach().clone()
    optimizer = torch.optim.Adam([logits], lr=0.1, eps=1e-5)
    logprobs = logits.log_softmax(-1)
    ppo_policy(logprobs, logprobs.detach() - 0.5, torch.zeros(4, 3), all_true(before), **CLIP)[0].backward()
    optimizer.step()
    assert torch.equal(logits.grad, torch.zeros(4, 3))
    assert torch.equal(logits, before)


def test_ppo_value_by_hand():
    values = doubles(0.5, 0.1, -0.5, 1.5).requires_grad_()
    old_values, returns = doubles(0, 0, 0, 1), torch.ones(4, dtype=torch.float64)
    loss, clip_fraction = ppo_value(values, old_values, returns, all_true(returns), clip_range=0.2)
    loss.backward()
    close(loss, scalar(0.49375))
    close(clip_fraction, scalar(0.25))
    close(values.grad, doubles(0, -0.9, -1.5, 0.5) / 4)


def test_without_a_clip_range_the_value_loss_is_half_the_mean_square_error():
    values, returns = doubles(0.5, 0.1, -0.5, 1.5), torch.ones(4, dtype=torch.float64)
    loss, clip_fraction = ppo_value(values, doubles(0, 0, 0, 1), returns, all_true(returns), clip_range=None)
    close(loss, scalar((0.25 + 0.81 + 2.25 + 0.25) / 8))
    assert clip_fraction.item() == 0.0


# DPO

PAIR = doubles(-10), doubles(-12), doubles(-11), doubles(-11.5)


@pytest.mark.parametrize(
    "variant, label_smoothing, expected",
    [
        ("sigmoid", 0.0, 0.6209570478),
        ("sigmoid", 0.1, 0.6359570478),
        ("robust", 0.1, 0.6022070478),
        ("ipo", 0.0, 12.25),
        ("hinge", 0.0, 0.85),
    ],
)
def test_dpo_by_hand(variant, label_smoothing, expected):
    got = dpo(*PAIR, beta=0.1, variant=variant, label_smoothing=label_smoothing)
    close(got.loss, scalar(expected))
    close(got.chosen_rewards, doubles(0.1))
    close(got.rejected_rewards, doubles(-0.05))


def test_dpo_gradient_is_beta_times_the_weight_of_the_pair():
    chosen, rejected = PAIR[0].clone().requires_grad_(), PAIR[1].clone().requires_grad_()
    got = dpo(chosen, rejected, *PAIR[2:], beta=0.1, variant="sigmoid", label_smoothing=0.0)
    got.loss.backward()
    close(chosen.grad, doubles(-0.1 * 0.4625701547))
    close(rejected.grad, doubles(0.1 * 0.4625701547))
    assert not got.chosen_rewards.requires_grad and not got.rejected_rewards.requires_grad


def test_a_policy_equal_to_its_reference_has_loss_ln_2_and_half_beta_as_gradient():
    chosen, rejected = doubles(-3.0, -40.0).requires_grad_(), doubles(-7.0, -2.0).requires_grad_()
    got = dpo(
        chosen, rejected, chosen.detach(), rejected.detach(), beta=0.3, variant="sigmoid", label_smoothing=0.0
    )
    got.loss.backward()
    close(got.loss, scalar(math.log(2)))
    close(chosen.grad, doubles(-0.15, -0.15) / 2)  # mean over the two pairs
    close(rejected.grad, doubles(0.15, 0.15) / 2)


@pytest.mark.parametrize("variant", ["sigmoid", "robust", "ipo", "hinge"])
def test_a_constant_on_both_reference_logprobs_changes_nothing(variant):
    options = {"beta": 0.1, "variant": variant, "label_smoothing": 0.0}
    loss = dpo(*PAIR, **options).loss
    close(dpo(PAIR[0], PAIR[1], PAIR[2] + 4, PAIR[3] + 4, **options).loss, loss)
    assert dpo(PAIR[0], PAIR[1], PAIR[2] + 4, PAIR[3], **options).loss != loss


# GRPO

@pytest.mark.parametrize(
    "how, expected",
    [("sequence_mean", 1.5), ("token_mean", 5 / 3), ("fixed_length", 0.625), ("sequence_sum", 5.0)],
)
def test_the_four_ways_to_aggregate(how, expected):
    losses = doubles([1, 1, 50, 50], [2, 2, 2, 2])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    close(aggregate(losses, mask, how=how, max_length=8), scalar(expected))
    # repeating every response changes no mean
    close(aggregate(losses.repeat(3, 1), mask.repeat(3, 1), how=how, max_length=8), scalar(expected))


def test_a_response_without_tokens_does_not_dilute_the_mean_of_sequence_means():
    losses, mask = doubles([1, 3], [9, 9]), torch.tensor([[1, 1], [0, 0]]).bool()
    close(aggregate(losses, mask, how="sequence_mean", max_length=None), scalar(2.0))


def test_one_update_per_rollout_has_value_zero_but_a_gradient_and_token_mean_has_a_value():
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    advantages = doubles([1] * 4, [-1] * 4)
    new = torch.full((2, 4), -1.0, dtype=torch.float64, requires_grad=True)
    losses, _ = clipped_surrogate(new, new.detach(), advantages, mask, **CLIP)
    by_sequence = aggregate(losses, mask, how="sequence_mean", max_length=None)
    by_sequence.backward()
    close(by_sequence, scalar(0.0))
    close(new.grad, doubles([-0.25, -0.25, 0, 0], [0.125] * 4))
    close(aggregate(losses, mask, how="token_mean", max_length=None), scalar(1 / 3))


# gradients and refusals

def test_gradients_agree_with_finite_differences():
    generator = torch.Generator().manual_seed(9)
    x, y, z, w = torch.randn(4, 3, 4, dtype=torch.float64, generator=generator)
    mask = torch.rand(3, 4, generator=generator) < 0.7
    x.requires_grad_()
    ranks, groups = torch.randint(0, 3, (12,), generator=generator), torch.arange(12) % 3
    functions = [
        lambda x: causal_lm(x, mask),
        lambda x: ppo_policy(x, y, z, mask, clip_low=0.2, clip_high=0.3, dual_clip=3.0)[0],
        lambda x: ppo_value(x, y, z, mask, clip_range=0.2)[0],
        lambda x: pairwise_ranking(x, y, margin=0.5, label_smoothing=0.1, centering=0.01),
        lambda x: kwise_ranking(x.reshape(-1), ranks, groups)[0],
        *(
            lambda x, variant=variant: dpo(x, y, z, w, beta=0.5, variant=variant, label_smoothing=0.0).loss
            for variant in ("sigmoid", "robust", "ipo", "hinge")
        ),
        *(
            lambda x, how=how: aggregate(x.square(), mask, how=how, max_length=7)
            for how in ("sequence_mean", "token_mean", "fixed_length", "sequence_sum")
        ),
    ]
    for function in functions:
        assert torch.autograd.gradcheck(function, x)


def test_mistakes_are_refused_by_name():
    x, two = torch.zeros(3, 2), torch.zeros(2)
    mask = all_true(x)
    with pytest.raises(ValueError, match=r"ppo_value.*returns \(2,\)"):
        ppo_value(x, x, two, mask, clip_range=0.2)
    with pytest.raises(ValueError, match=r"clipped_surrogate.*advantages \(2,\)"):
        ppo_policy(x, x, two, mask, **CLIP)
    with pytest.raises(ValueError, match="causal_lm.*one shape"):
        causal_lm(two, mask)
    with pytest.raises(ValueError, match="dual_clip above 1"):
        ppo_policy(x, x, x, mask, clip_low=0.2, clip_high=0.2, dual_clip=1.0)
    with pytest.raises(ValueError, match=r"chosen \(2,\), rejected \(3, 2\)"):
        pairwise_ranking(two, x, **PLAIN)
    with pytest.raises(ValueError, match="margin"):
        pairwise_ranking(two, two, margin=torch.zeros(3), label_smoothing=0.0, centering=0.0)
    with pytest.raises(ValueError, match=r"label_smoothing in \[0, 0.5\), got 0.5"):
        pairwise_ranking(two, two, margin=0.0, label_smoothing=0.5, centering=0.0)
    with pytest.raises(ValueError, match="kwise_ranking.*one shape"):
        kwise_ranking(two, torch.zeros(3), two)
    with pytest.raises(ValueError, match=r"ranks \(N,\)"):
        ranking_pairs(x, x)
    with pytest.raises(ValueError, match="'simpo'"):
        dpo(two, two, two, two, beta=0.1, variant="simpo", label_smoothing=0.0)
    with pytest.raises(ValueError, match="'ipo' takes no label_smoothing"):
        dpo(two, two, two, two, beta=0.1, variant="ipo", label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"ref_rejected \(3, 2\)"):
        dpo(two, two, two, x, beta=0.1, variant="sigmoid", label_smoothing=0.0)
    with pytest.raises(ValueError, match="'mean'"):
        aggregate(x, mask, how="mean", max_length=8)
    with pytest.raises(ValueError, match="fixed_length needs max_length"):
        aggregate(x, mask, how="fixed_length", max_length=None)
    with pytest.raises(ValueError, match=r"\(B, R\)"):
        aggregate(two, all_true(two), how="token_mean", max_length=None)
