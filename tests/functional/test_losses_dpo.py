import math

import pytest

from components.functional.losses import dpo
from tests.kit.float64 import close, doubles, scalar

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
    got = dpo(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.3, variant="sigmoid", label_smoothing=0.0)
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
