import math

import pytest
import torch
from torch import Tensor

from components.functional.advantages import gae, group_decoupled, group_relative, token_rewards
from components.functional.masking import masked_whiten
from tests.kit.float64 import close, doubles

NAN = float("nan")
# slot 5 holds garbage on purpose
VALUES = torch.tensor([[0.5, 0.4, 0.6, 0.2, 9.0]], dtype=torch.float64)
REWARDS = torch.tensor([[-0.1, 0.0, 0.05, 1.0, 7.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True, True, False]])


def rows(*values):
    return torch.tensor([values], dtype=torch.float64)


@pytest.mark.parametrize(
    "gamma, lam, advantages, returns",
    [
        (1.0, 0.95, [0.360025, 0.5895, 0.41, 0.8, 0], [0.860025, 0.9895, 1.01, 1.0, 0]),
        (1.0, 1.0, [0.45, 0.65, 0.45, 0.8, 0], [0.95, 1.05, 1.05, 1.0, 0]),  # reward to go − V
        (1.0, 0.0, [-0.2, 0.2, -0.35, 0.8, 0], [0.3, 0.6, 0.25, 1.0, 0]),  # one-step errors
        (0.9, 0.5, [-0.179025, 0.1355, -0.01, 0.8, 0], [0.320975, 0.5355, 0.59, 1.0, 0]),
    ],
)
def test_gae_by_hand(gamma, lam, advantages, returns):
    got = gae(REWARDS, VALUES, MASK, gamma=gamma, lam=lam)
    close(got[0], rows(*advantages))
    close(got[1], rows(*returns))


def test_gae_steps_over_a_hole_without_reward_value_or_decay():
    hole = torch.tensor([[True, True, False, True, False]])
    advantages, returns = gae(REWARDS, VALUES, hole, gamma=1.0, lam=0.95)
    close(advantages, rows(0.332, 0.56, 0, 0.8, 0))
    close(returns, rows(0.832, 0.96, 0, 1.0, 0))
    # the same three tokens with nothing between them
    keep = hole[0]
    together, _ = gae(REWARDS[:, keep], VALUES[:, keep], hole[:, keep], gamma=1.0, lam=0.95)
    close(advantages[:, keep], together)


def test_gae_without_the_mask_gives_the_numbers_of_the_known_bug():
    unmasked, _ = gae(REWARDS, VALUES, torch.ones_like(MASK), gamma=1.0, lam=0.95)
    close(unmasked, rows(6.4473875, 6.99725, 7.155, 7.9, -2))


def test_whitening_the_advantages_leaves_the_returns_alone():
    advantages, returns = gae(REWARDS, VALUES, MASK, gamma=1.0, lam=0.95)
    whitened = masked_whiten(advantages, MASK, shift_mean=True)
    close(whitened, rows(-1.0412625943, 0.2872635694, -0.7519365455, 1.5059355704, 0))
    close(returns, rows(0.860025, 0.9895, 1.01, 1.0, 0))


def test_gae_equals_the_slow_double_sum_on_random_masks():
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 6, 9, dtype=torch.float64, generator=generator)
    mask = torch.rand(6, 9, generator=generator) < 0.6
    got, _ = gae(rewards, values, mask, gamma=0.97, lam=0.9)
    for row in range(6):
        real = [t for t in range(9) if mask[row, t]]
        for i, t in enumerate(real):
            total = 0.0
            for steps, u in enumerate(real[i:]):
                after = real[i + steps + 1 : i + steps + 2]
                next_value = values[row, after[0]].item() if after else 0.0
                error = rewards[row, u].item() + 0.97 * next_value - values[row, u].item()
                total += (0.97 * 0.9) ** steps * error
            assert got[row, t].item() == pytest.approx(total, abs=1e-12)
        assert got[row][~mask[row]].abs().sum() == 0


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_a_value_that_foresees_a_constant_score_leaves_no_advantage(lam):
    mask = torch.arange(6) < torch.tensor([6, 3, 1])[:, None]
    rewards = token_rewards(torch.full((3,), 2.5).double(), torch.rand(3, 6).double(), mask, beta=0.0)
    advantages, returns = gae(rewards, torch.full((3, 6), 2.5).double(), mask, gamma=1.0, lam=lam)
    close(advantages, torch.zeros(3, 6, dtype=torch.float64))
    close(returns, 2.5 * mask.double())


def test_scaling_and_shifting_the_score_does_not_change_whitened_advantages_if_value_and_beta_are_zero():
    score = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    mask = torch.arange(4) < torch.tensor([4, 3, 1, 2, 4])[:, None]
    nothing = torch.zeros(5, 4, dtype=torch.float64)

    def whitened(score):
        rewards = token_rewards(score, nothing, mask, beta=0.0)
        return masked_whiten(gae(rewards, nothing, mask, gamma=1.0, lam=1.0)[0], mask, shift_mean=True)

    close(whitened(4 * score + 9), whitened(score), atol=1e-7)


def test_a_row_without_tokens_gets_nothing_and_does_not_affect_others():
    mask = torch.tensor([[False, False], [True, True]])
    score, kl = torch.tensor([NAN, 1.0]), torch.tensor([[NAN, NAN], [0.5, 0.25]])
    rewards = token_rewards(score, kl, mask, beta=2.0)
    assert rewards.tolist() == [[0.0, 0.0], [-1.0, 0.5]]
    advantages, returns = gae(rewards, torch.tensor([[NAN, NAN], [0.0, 0.0]]), mask, gamma=1.0, lam=1.0)
    assert advantages.tolist() == returns.tolist() == [[0.0, 0.0], [-0.5, 0.5]]


def test_the_score_lands_on_the_last_real_token_and_the_penalty_on_every_real_one():
    kl = doubles([0.1, 0.2, 0.3, 9.0], [0.4, 9.0, 9.0, 9.0], [9.0, 0.5, 9.0, 0.6])
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 1, 0, 1]]).bool()
    got = token_rewards(doubles(1, -2, 3), kl, mask, beta=0.1)
    close(got, doubles([-0.01, -0.02, 0.97, 0], [-2.04, 0, 0, 0], [0, -0.05, 0, 2.94]))


@pytest.mark.parametrize(
    "variant, eps, expected",
    [("grpo", 1e-4, 0.8658754298), ("grpo", 1e-6, 0.8660239038), ("dr_grpo", 0.0, 0.5), ("rloo", 0.0, 2 / 3)],
)
def test_group_relative_advantages_of_two_correct_and_two_wrong(variant, eps, expected):
    got = group_relative(doubles(1, 0, 0, 1), group_size=4, variant=variant, eps=eps)
    close(got, expected * doubles(1, -1, -1, 1))
    biased = 0.99980004
    assert abs(got[0].item() - biased) > 0.1


def test_one_correct_of_four_and_each_group_by_itself():
    got = group_relative(doubles(1, 0, 0, 0, 1, 0, 0, 1), group_size=4, variant="grpo", eps=1e-4)
    close(got[:4], doubles(1.49970006, -0.49990002, -0.49990002, -0.49990002))
    close(got[4:], 0.8658754298 * doubles(1, -1, -1, 1))


@pytest.mark.parametrize("variant", ["grpo", "dr_grpo", "rloo"])
@pytest.mark.parametrize("reward", [2.0, 0.1, 1e-3])
def test_equal_rewards_give_exactly_zero(variant, reward):
    # the mean of seven 0.1 in float32 is not 0.1
    got = group_relative(torch.full((14,), reward), group_size=7, variant=variant, eps=1e-12)
    assert torch.equal(got, torch.zeros(14))


@pytest.mark.parametrize("variant", ["grpo", "dr_grpo", "rloo"])
def test_advantages_sum_to_zero_follow_a_permutation_and_do_not_see_other_groups(variant):
    rewards = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    got = group_relative(rewards, group_size=4, variant=variant, eps=1e-4)
    close(got.view(3, 4).sum(1), torch.zeros(3, dtype=torch.float64))
    order = torch.tensor([2, 0, 3, 1])
    shuffled = rewards.view(3, 4)[:, order].reshape(-1)
    permuted = group_relative(shuffled, group_size=4, variant=variant, eps=1e-4)
    close(permuted, got.view(3, 4)[:, order].reshape(-1))
    close(group_relative(rewards[:4], group_size=4, variant=variant, eps=1e-4), got[:4])


def test_wrong_shapes_groups_and_variants_are_refused():
    with pytest.raises(ValueError, match="gae.*same shape"):
        gae(REWARDS, VALUES[:, :4], MASK, gamma=1.0, lam=1.0)
    with pytest.raises(ValueError, match=r"\(B, R\)"):
        gae(REWARDS[0], VALUES[0], MASK[0], gamma=1.0, lam=1.0)
    with pytest.raises(ValueError, match="score"):
        token_rewards(torch.zeros(2), REWARDS, MASK, beta=0.1)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        group_relative(torch.zeros(3), group_size=1, variant="grpo", eps=1e-4)
    with pytest.raises(ValueError, match="multiple of group_size 4"):
        group_relative(torch.zeros(6), group_size=4, variant="grpo", eps=1e-4)
    with pytest.raises(ValueError, match="'grop'"):
        group_relative(torch.zeros(6), group_size=3, variant="grop", eps=1e-4)


ROOT = math.sqrt


def decoupled(parts, weights, group_size, **changes):
    return group_decoupled(parts, torch.tensor(weights).double(), group_size=group_size, **{"eps": 0.0} | changes)


def test_two_rewards_gained_at_once_count_more_than_one_of_them_where_their_sum_alone_does_not_tell():
    """Two groups of two: one gains one reward, the other gains both; the sums are 0, 1 and 0, 2.

    GRPO: ±1/√2 in both. Each reward by itself is ±1/√2, so the weighted sums are ±1/√2 and ±√2, whose unbiased
    deviation over the batch is √(5/3)."""
    parts = doubles([0, 0], [1, 0], [0, 0], [1, 1])
    together = group_relative(parts.sum(1), group_size=2, variant="grpo", eps=0.0)
    close(together, doubles(-1, 1, -1, 1) / ROOT(2))
    close(decoupled(parts, [1.0, 1.0], 2), doubles(-ROOT(0.3), ROOT(0.3), -2 * ROOT(0.3), 2 * ROOT(0.3)))


def test_equal_sums_of_different_rewards_keep_different_advantages():
    """(1, 0) and (0, 1) sum to 1, but 1 is one of two in the first reward, and one of four in the second."""
    parts = doubles([1, 0], [1, 0], [0, 1], [0, 0])
    together = group_relative(parts.sum(1), group_size=4, variant="grpo", eps=0.0)
    assert together[0] == together[1] == together[2]
    first, second = doubles(1, 1, -1, -1) * ROOT(3) / 2, doubles(-1, -1, 3, -1) / 2
    expected = first + second  # 0.366, 0.366, 0.634, −1.366
    close(decoupled(parts, [1.0, 1.0], 4), expected / ROOT(float(expected.square().sum()) / 3))


def test_weights_apply_to_normalized_rewards_so_the_unit_of_a_reward_does_not_count():
    parts = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    scaled = parts * doubles(1000, 0.01) + doubles(-7, 3)
    close(decoupled(parts, [1.0, 0.5], 4), decoupled(scaled, [1.0, 0.5], 4))
    close(decoupled(parts, [3.0, 1.5], 4), decoupled(parts, [1.0, 0.5], 4))  # the batch's deviation
    assert not torch.allclose(decoupled(parts, [1.0, 1.0], 4), decoupled(parts, [1.0, 0.5], 4))
    close(decoupled(parts, [1.0, 0.0], 4), decoupled(parts[:, :1], [1.0], 4))
    close(decoupled(parts, [-2.0, 0.0], 4), -decoupled(parts[:, :1], [1.0], 4))


def test_a_reward_counts_only_the_responses_that_it_applies_to():
    """The second one applies to two of three responses: 2 and 0, mean 1, deviation √2; the third gets 0 from it."""
    parts = doubles([1, 2], [0, NAN], [0, 0])
    first, second = doubles(2, -1, -1) / ROOT(3), doubles(1, 0, -1) / ROOT(2)
    expected = first + 10 * second
    close(decoupled(parts, [1.0, 10.0], 3), expected / ROOT(float(expected.square().sum()) / 2))


@pytest.mark.parametrize(
    "constant", [(0.1,) * 7, (0.1, NAN, 0.1, 0.1, NAN, 0.1, 0.1), (NAN, 5.0, *[NAN] * 5), (NAN,) * 7]
)
def test_a_reward_that_is_equal_or_applies_to_at_most_one_adds_exactly_nothing(constant):
    varied = torch.tensor([0.3, -1.0, 2.0, 0.7, 0.0, 0.0, 5.0])
    alone = group_decoupled(varied[:, None], torch.tensor([1.0]), group_size=7, eps=1e-4)
    both = torch.stack([varied, torch.tensor(constant)], 1)
    assert torch.equal(group_decoupled(both, torch.tensor([1.0, 9.0]), group_size=7, eps=1e-4), alone)
    nothing = group_decoupled(both[:, 1:], torch.tensor([9.0]), group_size=7, eps=1e-12)
    assert torch.equal(nothing, torch.zeros(7))


def test_decoupled_advantages_equal_the_slow_loops():
    generator = torch.Generator().manual_seed(1)
    parts = torch.randn(20, 3, dtype=torch.float64, generator=generator)
    parts[torch.rand(20, 3, generator=generator) < 0.3] = NAN
    weights, sums = [1.0, -0.5, 2.0], [0.0] * 20
    for start in range(0, 20, 5):
        for k, weight in enumerate(weights):
            own = [float(parts[n, k]) for n in range(start, start + 5) if not parts[n, k].isnan()]
            if len(own) < 2:
                continue
            mean = sum(own) / len(own)
            deviation = ROOT(sum((r - mean) ** 2 for r in own) / (len(own) - 1))
            for n in range(start, start + 5):
                if not parts[n, k].isnan():
                    sums[n] += weight * (float(parts[n, k]) - mean) / (deviation + 1e-4)
    mean = sum(sums) / 20
    deviation = ROOT(sum((s - mean) ** 2 for s in sums) / 19)
    close(decoupled(parts, weights, 5, eps=1e-4), doubles(*sums) / (deviation + 1e-4))


def test_the_deviation_of_the_batch_is_that_of_all_processes():
    parts = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    whole = decoupled(parts, [1.0, 2.0], 3)
    sums: list[Tensor] = []
    for half in (parts[:6], parts[6:]):
        decoupled(half, [1.0, 2.0], 3, sum_over_ranks=lambda own: sums.append(own) or own)
    both = [
        decoupled(half, [1.0, 2.0], 3, sum_over_ranks=lambda _: sums[0] + sums[1]) for half in (parts[:6], parts[6:])
    ]
    close(torch.cat(both), whole)


def test_a_response_that_a_comparison_leaves_out_gets_nothing_and_changes_no_other():
    rewards, mask = doubles(1, 50, 0, 0, NAN, 1), torch.tensor([True, False, True, True, False, True])
    for variant in ("grpo", "dr_grpo", "rloo"):
        got = group_relative(rewards, group_size=6, variant=variant, eps=1e-4, mask=mask)
        alone = group_relative(rewards[mask], group_size=4, variant=variant, eps=1e-4)
        close(got[mask], alone)
        assert got[~mask].tolist() == [0.0, 0.0]
    assert group_relative(rewards, group_size=6, variant="grpo", eps=1e-4).isnan().all()  # never silently left out


def test_parts_and_weights_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"expected parts \(N, K\) and weights \(K,\), got \(4,\) and \(1,\)"):
        group_decoupled(torch.zeros(4), torch.zeros(1), group_size=2, eps=1e-4)
    with pytest.raises(ValueError, match=r"got \(4, 2\) and \(3,\)"):
        group_decoupled(torch.zeros(4, 2), torch.zeros(3), group_size=2, eps=1e-4)
    with pytest.raises(ValueError, match="same shape"):
        group_relative(torch.zeros(4), group_size=2, variant="grpo", eps=1e-4, mask=torch.ones(3, dtype=torch.bool))
