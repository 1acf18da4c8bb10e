import pytest
import torch

from components.functional.losses import aggregate, causal_lm, dpo, kwise_ranking, ppo_policy, ppo_value, ranking_pairs
from tests.kit.float64 import all_true, close, doubles, scalar

PLAIN = {"margin": 0.0, "label_smoothing": 0.0, "centering": 0.0}
CLIP = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}


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
    kwise, num_groups = kwise_ranking(empty, ranking_pairs(empty, torch.zeros(0, dtype=torch.int64)), **PLAIN)
    assert num_groups == 0
    ways = ["sequence_mean", "token_mean", "fixed_length", "sequence_sum"]
    losses = [
        causal_lm(x, none),
        ppo_policy(x, x, x, none, **CLIP)[0],
        ppo_value(x, x, x, none, clip_range=0.2)[0],
        dpo(empty, empty, empty, empty, beta=0.1, variant="sigmoid", label_smoothing=0.0).loss,
        kwise,
        *(aggregate(x, none, how=how, max_length=8) for how in ways),
    ]
    for loss in losses:
        assert loss.item() == 0.0
        loss.backward()  # an empty rank must still take part in the backward pass
    assert torch.equal(x.grad, torch.zeros(2, 3))


def test_gradients_agree_with_finite_differences():
    generator = torch.Generator().manual_seed(9)
    x, y, z, w = torch.randn(4, 3, 4, dtype=torch.float64, generator=generator)
    mask = torch.rand(3, 4, generator=generator) < 0.7
    x.requires_grad_()
    pairs = ranking_pairs(torch.randint(0, 3, (12,), generator=generator), torch.arange(12) % 3)
    functions = [
        lambda x: causal_lm(x, mask),
        lambda x: ppo_policy(x, y, z, mask, clip_low=0.2, clip_high=0.3, dual_clip=3.0)[0],
        lambda x: ppo_value(x, y, z, mask, clip_range=0.2)[0],
        lambda x: kwise_ranking(x.reshape(-1), pairs, margin=0.5, label_smoothing=0.1, centering=0.01)[0],
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
    with pytest.raises(ValueError, match="causal_lm.*same shape"):
        causal_lm(two, mask)
    with pytest.raises(ValueError, match="dual_clip above 1"):
        ppo_policy(x, x, x, mask, clip_low=0.2, clip_high=0.2, dual_clip=1.0)
    with pytest.raises(ValueError, match="ranking_pairs.*same shape"):
        ranking_pairs(torch.zeros(3), two)
    with pytest.raises(ValueError, match=r"label_smoothing in \[0, 0.5\), got 0.5"):
        kwise_ranking(two, ranking_pairs(two, two), margin=0.0, label_smoothing=0.5, centering=0.0)
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
