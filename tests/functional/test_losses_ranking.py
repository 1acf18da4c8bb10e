import itertools
import math

import pytest
import torch

from components.functional.losses import kwise_ranking, ranking_pairs
from tests.kit.float64 import close, doubles, scalar

PLAIN = {"margin": 0.0, "label_smoothing": 0.0, "centering": 0.0}
OF_FOUR = ranking_pairs(torch.arange(4), torch.zeros(4, dtype=torch.int64))


def of_pairs(chosen, rejected, **options):
    """The loss of prompts with two answers each; chosen, rejected: (P,)."""
    count = len(chosen)
    pairs = ranking_pairs(torch.tensor([0, 1]).repeat_interleave(count), torch.arange(count).repeat(2))
    loss, num_groups = kwise_ranking(torch.cat([chosen, rejected]), pairs, **{**PLAIN, **options})
    assert num_groups == count
    return loss


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [0.3132616875, 0.9740769842, 0.6931471806]),
        ({"margin": 1.0}, [0.6931471806, 1.701413278, 1.3132616875]),
        ({"label_smoothing": 0.1}, [0.4132616875, 0.9240769842, 0.6931471806]),
    ],
)
def test_the_loss_of_pairs_one_by_one_and_on_average(options, expected):
    chosen, rejected = doubles(2, 0.5, 0), doubles(1, 1, 0)
    for i in range(3):
        close(of_pairs(chosen[i : i + 1], rejected[i : i + 1], **options), scalar(expected[i]))
    close(of_pairs(chosen, rejected, **options), scalar(sum(expected) / 3))


def test_centering_adds_the_mean_square_of_the_sum_of_scores():
    chosen, rejected = doubles(2, 0.5, 0), doubles(1, 1, 0)
    centered = of_pairs(chosen, rejected, centering=0.01)
    close(centered - of_pairs(chosen, rejected), scalar(0.0375))


def test_a_hopeless_pair_has_a_finite_loss_and_a_gradient_of_one_in_float32():
    chosen = torch.tensor([-100.0], requires_grad=True)
    loss = of_pairs(chosen, torch.tensor([100.0]))
    loss.backward()
    assert loss.item() == 200.0
    assert chosen.grad.item() == -1.0


def test_half_precision_scores_are_compared_in_float32():
    chosen, rejected = torch.tensor([8.0]).bfloat16(), torch.tensor([7.96875]).bfloat16()
    assert of_pairs(chosen, rejected).item() == pytest.approx(math.log1p(math.exp(-0.03125)))


def test_only_differences_of_scores_matter_and_a_swapped_pair_has_the_loss_of_minus_delta():
    chosen, rejected = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = of_pairs(chosen, rejected)
    close(of_pairs(chosen + 5, rejected + 5), loss)
    delta = (chosen - rejected).tolist()
    close(loss, scalar(sum(math.log1p(math.exp(-d)) for d in delta) / 7))
    swapped = of_pairs(rejected, chosen)
    close(swapped, scalar(sum(math.log1p(math.exp(d)) for d in delta) / 7))


def test_the_best_loss_under_flipped_labels_is_the_entropy_of_the_flip():
    for flip, entropy in [(0.1, 0.3250829734), (0.25, 0.5623351446)]:
        best = doubles(math.log((1 - flip) / flip))
        got = of_pairs(best, doubles(0.0), label_smoothing=flip)
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
    loss, num_groups = kwise_ranking(scores, OF_FOUR, **PLAIN)
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
    loss, num_groups = kwise_ranking(scores, ranking_pairs(ranks, groups), **PLAIN)
    ours, over_pairs = kwise_by_hand(scores.tolist(), ranks.tolist(), groups.tolist())
    assert num_groups == 2
    close(loss, scalar(0.3159648818))
    assert ours == pytest.approx(0.3159648818) and over_pairs == pytest.approx(0.2030276658)


def test_ties_make_no_pair_and_a_prompt_of_ties_does_not_count():
    ranks, groups = torch.tensor([0.0, 0.5, 0.5, 1.0, 1.0]), torch.tensor([0, 0, 0, 1, 1])
    better, worse, group, siblings, distinct = ranking_pairs(ranks, groups)
    assert sorted(zip(better.tolist(), worse.tolist(), group.tolist())) == [(0, 1, 0), (0, 2, 0)]
    assert siblings.tolist() == [2, 2] and distinct.tolist() == [0]
    loss, num_groups = kwise_ranking(doubles(1, 0, 0, 9, -9), ranking_pairs(ranks, groups), **PLAIN)
    assert num_groups == 1
    close(loss, scalar(0.3132616875))


def test_kwise_equals_the_slow_loop_and_sees_neither_order_nor_a_constant():
    generator = torch.Generator().manual_seed(4)
    scores = torch.randn(20, dtype=torch.float64, generator=generator)
    ranks = torch.randint(0, 4, (20,), generator=generator)
    groups = torch.randint(0, 5, (20,), generator=generator)
    pairs = ranking_pairs(ranks, groups)
    loss, _ = kwise_ranking(scores, pairs, **PLAIN)
    close(loss, scalar(kwise_by_hand(scores.tolist(), ranks.tolist(), groups.tolist())[0]))
    order = torch.randperm(20, generator=generator)
    close(kwise_ranking(scores[order], ranking_pairs(ranks[order], groups[order]), **PLAIN)[0], loss)
    close(kwise_ranking(scores + 3, pairs, **PLAIN)[0], loss)
    assert kwise_ranking(-scores, pairs, **PLAIN)[0] != loss


def test_one_forward_per_completion_has_the_loss_and_gradient_of_one_per_pair():
    features = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    shared = torch.ones(3, dtype=torch.float64, requires_grad=True)
    kwise_ranking(features @ shared, OF_FOUR, **PLAIN)[0].backward()
    separate = torch.ones(3, dtype=torch.float64, requires_grad=True)
    losses = [
        of_pairs(features[i : i + 1] @ separate, features[j : j + 1] @ separate)
        for i, j in itertools.combinations(range(4), 2)
    ]
    torch.stack(losses).mean().backward()
    close(shared.grad, separate.grad)
