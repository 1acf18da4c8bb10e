"""Divergences of next-token distributions: by hand on two and three ids, their limits, and their gradients."""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from components.functional.divergences import divergences
from tests.kit.float64 import close, doubles

KINDS = [("forward", 0.5), ("reverse", 0.5), ("jsd", 0.5), ("jsd", 0.1)]
STUDENT, TEACHER = doubles([1 / 2, 1 / 4, 1 / 4]).log(), doubles([1 / 8, 1 / 8, 3 / 4]).log()


def test_two_ids_by_hand():
    """π (.5, .5), τ (.9, .1): forward .9 ln 1.8 + .1 ln .2, reverse .5 ln(.25/.09), and between them m (.7, .3)."""
    found = divergences(doubles([0.5, 0.5]).log(), doubles([0.9, 0.1]).log(), kind="jsd", beta=0.5)
    assert float(found.forward) == pytest.approx(0.368064, abs=5e-7)
    assert float(found.reverse) == pytest.approx(0.510826, abs=5e-7)
    assert float(found.loss) == pytest.approx(0.101749, abs=5e-7)
    assert float(found.entropy) == pytest.approx(math.log(2))


def test_three_ids_by_hand():
    found = divergences(STUDENT, TEACHER, kind="forward", beta=0.5)
    close(found.forward, doubles(1 / 8 * math.log(1 / 4) + 1 / 8 * math.log(1 / 2) + 3 / 4 * math.log(3)))
    close(found.reverse, doubles(1 / 2 * math.log(4) + 1 / 4 * math.log(2) + 1 / 4 * math.log(1 / 3)))
    close(found.entropy, doubles(1.5 * math.log(2)))
    # β 1/4: m = τ/4 + 3π/4 = 13/32, 7/32, 12/32
    jsd = divergences(STUDENT, TEACHER, kind="jsd", beta=0.25).loss
    of_teacher = 1 / 8 * math.log(4 / 13) + 1 / 8 * math.log(4 / 7) + 3 / 4 * math.log(2)
    of_student = 1 / 2 * math.log(16 / 13) + 1 / 4 * math.log(8 / 7) + 1 / 4 * math.log(2 / 3)
    close(jsd, doubles(of_teacher / 4 + 3 * of_student / 4))


def test_the_gradients_of_three_ids_by_hand():
    close(divergences(STUDENT, TEACHER, kind="forward", beta=0.5).slope, doubles([3 / 8, 1 / 8, -1 / 2]))  # π − τ
    # π·(log π/τ − KL): log π/τ = ln 4, ln 2, −ln 3
    reverse = 5 / 4 * math.log(2) - math.log(3) / 4
    expected = [(math.log(4) - reverse) / 2, (math.log(2) - reverse) / 4, (-math.log(3) - reverse) / 4]
    close(divergences(STUDENT, TEACHER, kind="reverse", beta=0.5).slope, doubles(expected))


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_values_and_gradients_are_those_of_the_definition_written_with_probabilities(kind, beta):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    found = divergences(logits.detach().log_softmax(1), teacher.log_softmax(1), kind=kind, beta=beta)
    pi, tau = Categorical(logits=logits), Categorical(logits=teacher)
    mixture = Categorical(probs=beta * tau.probs + (1 - beta) * pi.probs)
    slow = {
        "forward": kl_divergence(tau, pi),
        "reverse": kl_divergence(pi, tau),
        "jsd": beta * kl_divergence(tau, mixture) + (1 - beta) * kl_divergence(pi, mixture),
    }
    close(found.loss, slow[kind].detach())
    close(found.forward, slow["forward"].detach())
    close(found.reverse, slow["reverse"].detach())
    close(found.entropy, pi.entropy().detach())
    close(found.slope, torch.autograd.grad(slow[kind].sum(), logits)[0])


@pytest.mark.parametrize(("beta", "scale", "kind"), [(1e-6, 1e-6, "forward"), (1 - 1e-6, 1e-6, "reverse")])
def test_jensen_shannon_goes_to_either_direction_at_its_ends(beta, scale, kind):
    jsd = divergences(STUDENT, TEACHER, kind="jsd", beta=beta).loss / scale
    close(jsd, divergences(STUDENT, TEACHER, kind=kind, beta=0.5).loss, atol=1e-5)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_an_id_that_neither_can_say_changes_nothing(kind, beta):
    absent = doubles([-math.inf])
    more = [torch.cat([one[:, :1], absent, one[:, 1:]], dim=1) for one in (STUDENT, TEACHER)]
    found, expected = divergences(*more, kind=kind, beta=beta), divergences(STUDENT, TEACHER, kind=kind, beta=beta)
    for one, other in zip(found[:4], expected[:4]):
        close(one, other)
    close(found.slope[:, [0, 2, 3]], expected.slope)
    assert float(found.slope[0, 1]) == 0


def test_what_only_one_can_say_is_infinitely_far_in_its_own_direction_alone():
    sure, open_ = doubles([0.0, -math.inf]), doubles([0.5, 0.5]).log()
    found = divergences(sure, open_, kind="jsd", beta=0.5)
    assert float(found.forward) == math.inf
    close(found.reverse, doubles(math.log(2)))
    close(found.loss, doubles(math.log(4 / 3) / 2 + (math.log(2 / 3) + math.log(2)) / 4))  # m (3/4, 1/4)
    assert float(divergences(open_, sure, kind="forward", beta=0.5).reverse) == math.inf


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_of_equal_distributions_divergence_and_gradient_are_zero(kind, beta):
    found = divergences(STUDENT, STUDENT.clone(), kind=kind, beta=beta)
    close(torch.stack([found.forward, found.reverse, found.loss]), torch.zeros(3, 1, dtype=torch.float64))
    close(found.slope, torch.zeros(1, 3, dtype=torch.float64))


def test_unknown_kinds_weights_without_a_mixture_and_other_shapes_are_refused():
    with pytest.raises(ValueError, match="expected forward, reverse or jsd, got 'both'"):
        divergences(STUDENT, TEACHER, kind="both", beta=0.5)
    for beta in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="beta between 0 and 1"):
            divergences(STUDENT, TEACHER, kind="jsd", beta=beta)
    with pytest.raises(ValueError, match=r"expected student and teacher \(N, V\), got \(1, 3\) and \(1, 2\)"):
        divergences(STUDENT, TEACHER[:, :2], kind="forward", beta=0.5)
