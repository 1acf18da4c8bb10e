"""One token, three actions: the losses must find the known optimal policy."""

import itertools
import math

import pytest
import torch

from components.functional.advantages import gae, token_rewards
from components.functional.logprobs import gather_logprobs, kl_k1
from components.functional.losses import dpo, ppo_policy
from components.functional.masking import masked_whiten
from components.functional.sampling import sample
from tests.kit.oracles import exact_kl, kl_regularized_optimum

BETA = 0.5
REFERENCE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REWARDS = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
OPTIMUM = torch.tensor([0.0366667118, 0.1625594345, 0.8007738537], dtype=torch.float64)


def total_variation(policy):
    return (policy - OPTIMUM).abs().sum().item() / 2


def objective(policy):
    return (policy @ REWARDS - BETA * exact_kl(policy.log(), REFERENCE.log())).item()


def train_ppo(*, beta, num_rollouts=400, num_samples=512):
    generator = torch.Generator().manual_seed(0)
    logits = REFERENCE.log().clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05, eps=1e-5)
    mask = torch.ones(num_samples, 1, dtype=torch.bool)
    objectives = []
    for rollout in range(num_rollouts):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - rollout / num_rollouts)
        with torch.no_grad():
            rows = logits.expand(num_samples, 3)
            actions = sample(rows, generator)[:, None]
            old = gather_logprobs(rows[:, None], actions, temperature=1.0)
            kl = kl_k1(old, REFERENCE.log()[actions])
            rewards = token_rewards(REWARDS[actions[:, 0]], kl, mask, beta=beta)
            values = rewards.mean().expand_as(rewards)
            advantages, _ = gae(rewards, values, mask, gamma=1.0, lam=0.95)
            if rollout < num_rollouts // 2:  # at the optimum all rewards are equal, and whitening is noise
                advantages = masked_whiten(advantages, mask, shift_mean=True)
        new = gather_logprobs(logits.expand(num_samples, 1, 3), actions, temperature=1.0)
        loss, _ = ppo_policy(new, old, advantages, mask, clip_low=0.2, clip_high=0.2, dual_clip=None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objectives.append(objective(logits.detach().softmax(-1)))
    return logits.detach().softmax(-1), objectives


def test_ppo_with_the_kl_in_the_reward_finds_the_optimum_from_below():
    policy, objectives = train_ppo(beta=BETA)
    _, best = kl_regularized_optimum(REFERENCE, REWARDS, beta=BETA)
    assert total_variation(policy) < 0.01
    assert objectives[0] < objectives[20] < objectives[-1]
    assert max(objectives) <= best.item() + 1e-12
    assert objectives[-1] == pytest.approx(best.item(), abs=1e-3)


def test_ppo_without_the_kl_penalty_collapses_to_the_best_action():
    policy, _ = train_ppo(beta=0.0, num_rollouts=150)
    assert policy[2] > 0.95
    assert total_variation(policy) > 0.1


def fit_dpo(ref_logprobs):
    """Every ordered pair, weighed by the exact probability that its first action is preferred."""
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=200, tolerance_grad=1e-14, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        logp = logits.log_softmax(-1)
        loss = 0.0
        for actions in itertools.permutations(range(3), 2):
            chosen, rejected = (torch.tensor([action]) for action in actions)
            preferred = 1 / (1 + math.exp(REWARDS[rejected] - REWARDS[chosen]))
            pair = (logp[chosen], logp[rejected], ref_logprobs[chosen], ref_logprobs[rejected])
            loss = loss + preferred * dpo(*pair, beta=BETA, variant="sigmoid", label_smoothing=0.0).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().log_softmax(-1)


def test_dpo_on_exact_preferences_finds_the_optimum_and_its_implicit_reward():
    logp = fit_dpo(REFERENCE.log())
    assert total_variation(logp.exp()) < 1e-7
    implicit = BETA * (logp - REFERENCE.log())
    torch.testing.assert_close(implicit - implicit[0], REWARDS, rtol=0, atol=1e-6)


def test_dpo_with_another_reference_finds_another_policy():
    uniform = torch.full((3,), math.log(1 / 3), dtype=torch.float64)
    assert total_variation(fit_dpo(uniform).exp()) > 0.05
