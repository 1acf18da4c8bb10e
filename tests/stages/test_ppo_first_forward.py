"""Before any update the policy is the old policy and the reference: to the last digit, always, or training refuses."""

import pytest
import torch

from components.generation.generate import Sampling
from components.generation.responses import response_logprobs
from components.generation.rollout import Minibatch
from components.stages.ppo import PPO
from components.training.contract import RunContext
from components.training.self_checks import SelfCheckError
from tests.kit.tiny_stages import PROMPTS, ListLogger, another_reference, attached, causal, fit_prompts, ppo, same_bits


def log_ratio(stage: PPO, batch: Minibatch) -> torch.Tensor:
    logprobs, _ = response_logprobs(stage.policy, batch.packed, temperature=stage.sampling.temperature)
    return (logprobs - batch.old_logprobs)[batch.mask]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("minibatches", "samples_per_prompt"), [(1, 1), (2, 1), (5, 1), (3, 2)])
def test_the_first_ratio_is_one_and_the_first_kl_zero_however_the_rollout_is_split(
    minibatches, samples_per_prompt, temperature
):
    sampling = Sampling(max_new_tokens=6, temperature=temperature)
    stage = attached(ppo(minibatches=minibatches, samples_per_prompt=samples_per_prompt, epochs=3, sampling=sampling))
    parts = stage.collect(PROMPTS, 0)
    assert len(parts) == 3 * minibatches
    for part in parts:
        ratio = log_ratio(stage, part).exp()
        assert (ratio - 1).abs().max() < 2e-6
        metrics = stage.compute_loss(part).metrics
        assert metrics["clip_fraction"] == 0
        assert abs(metrics["approx_kl"]) < 1e-10
        kl = (part.old_logprobs - part.reference_logprobs)[part.mask]
        assert kl.abs().max() == 0


def test_every_rollout_is_sampled_from_the_policy_after_the_last_update():
    """A loader that prefetched would give the second rollout's first update a ratio other than 1."""
    logger = ListLogger()
    fit_prompts(ppo(epochs=1, minibatches=2), 6, logger=logger)
    ratios = torch.tensor(logger["train/ratio_max"])
    assert ((ratios[0::2] - 1).abs() < 1e-5).all()
    assert (ratios[1::2] > 1 + 1e-3).all()
    assert logger["rollout/kl"][0] == 0
    assert len(logger["rollout/kl"]) == 3
    assert logger["rollout/kl"][2] != 0


class ShiftedSources(PPO):
    """Predicts every response token from one position too early (TRLX, TRL #1893)."""

    def split(self, prompts, known, rollout):
        parts = super().split(prompts, known, rollout)
        shifted = (part.packed._replace(sources=(part.packed.sources - 1).clamp_min(0)) for part in parts)
        return [part._replace(packed=packed) for part, packed in zip(parts, shifted)]


class AnotherTemperature(PPO):
    """Records log-probabilities at temperature 1 of tokens sampled, and trained, at another."""

    def assess_part(self, part):
        logprobs, _ = response_logprobs(self.policy, part, temperature=1.0)
        return super().assess_part(part)._replace(old_logprobs=logprobs)


class AnotherSampler(PPO):
    """Old log-probabilities of a policy that is not the one in training, as a stale copy would give."""

    def assess_part(self, part):
        logprobs, _ = response_logprobs(causal(seed=7), part, temperature=self.sampling.temperature)
        return super().assess_part(part)._replace(old_logprobs=logprobs)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (another_reference(PPO), {}, "differs from its reference"),
        (ShiftedSources, {}, "forwards disagree"),
        (AnotherSampler, {}, "forwards disagree"),
        (AnotherTemperature, {"sampling": Sampling(6, temperature=0.7)}, "forwards disagree"),
        (PPO, {"policy": lambda: causal(dropout=0.1)}, "dropout"),
    ],
)
def test_training_refuses_to_start_when_rollout_and_training_disagree(kind, changes, message):
    with pytest.raises(SelfCheckError, match=message):
        fit_prompts(ppo(kind, **changes), 1)


def test_a_different_reference_is_not_an_error_after_the_first_update():
    """A resumed run's policy has left its reference long ago; the ratio is still checked."""
    attached(ppo(another_reference(PPO))).collect(PROMPTS, 3)
    with pytest.raises(SelfCheckError, match="forwards disagree"):
        attached(ppo(ShiftedSources)).collect(PROMPTS, 3)


@pytest.mark.parametrize("sampling", [Sampling(6, top_k=5), Sampling(6, top_p=0.9), Sampling(6, temperature=0.0)])
def test_sampling_that_is_not_the_policy_itself_is_refused(sampling):
    with pytest.raises(ValueError, match="rollouts must be sampled from the policy itself"):
        ppo(sampling=sampling)


def test_rollouts_depend_only_on_seed_rank_and_number(monkeypatch):
    def sampled(seed: int, rank: int, rollout: int) -> Minibatch:
        torch.manual_seed(torch.seed() % 1000)  # the global generator must not matter
        monkeypatch.setattr(PPO, "global_rank", rank)
        stage = attached(ppo(epochs=1, minibatches=1, run=RunContext(seed=seed)))
        [batch] = stage.collect(PROMPTS, rollout)
        return batch

    assert same_bits(sampled(3, 0, 1).tensors(), sampled(3, 0, 1).tensors())
    for seed, rank, rollout in ((4, 0, 1), (3, 1, 1), (3, 0, 2)):
        one, other = sampled(3, 0, 1).packed.response_ids, sampled(seed, rank, rollout).packed.response_ids
        assert one.shape != other.shape or (one != other).any(dim=1).float().mean() > 0.5
