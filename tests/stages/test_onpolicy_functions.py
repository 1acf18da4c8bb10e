"""On-policy stages whose reward is a Python function: scores, their metrics, and PPO's value model without a reward
model to start from."""

from functools import partial
from pathlib import Path

import pytest
import torch

from components.artifacts import store
from components.generation.generate import Sampling
from components.models.lora import TARGETS, LoRA
from components.rewards.function_file import RewardError
from components.rewards.functions import FunctionReward
from components.stages.grpo import GRPO
from components.stages.ppo import PPO
from components.stages.rejection import Rejection
from components.training.contract import RunContext, Spent
from tests.kit import tiny_models
from tests.kit.tiny_stages import (
    END,
    PROMPTS,
    Batches,
    ListLogger,
    adam,
    attached,
    causal,
    fit_prompts,
    given,
    grpo,
    ppo,
    quiet_fit,
    rejection,
    rloo,
    trainer,
)

FILE = Path(tiny_models.__file__).with_name("rewards.py")
BOTH = {"sevens": {"path": f"{FILE}:sevens", "weight": 2}, "short": {"path": f"{FILE}:short", "weight": 0.5}}
FOUR = ([7, 7, END], [3, 4, 7], [END], [6, 7, END])  # the second does not end by itself
OWN = {"score_scale": 1.0, "missing_end_score": None}


def sevens() -> FunctionReward:
    return FunctionReward.of({"path": f"{FILE}:sevens"}, "reward")


def both() -> FunctionReward:
    return FunctionReward.of({"functions": BOTH}, "reward")


def test_scores_are_the_functions_own_and_each_is_logged_over_the_responses_it_applies_to():
    """2·2 − 0.5·3 = 2.5, 2·1 = 2 (no end: short does not apply), 0 − 0.5·1 = −0.5, 2·1 − 0.5·3 = 0.5."""
    logger = ListLogger()
    stage = attached(ppo(given(PPO, *FOUR), reward=both, epochs=1, minibatches=2, **OWN), logger=logger)
    _, scores = stage.assess(PROMPTS[:4], stage.sample([], None))
    assert scores.total.tolist() == [2.5, 2.0, -0.5, 0.5]
    stage.collect(PROMPTS[:4], 0)
    assert logger["rollout/score"] == [pytest.approx(4.5 / 4)]
    assert logger["rollout/reward_sevens"] == [pytest.approx(4 / 4)]
    assert logger["rollout/reward_short"] == [pytest.approx((-3 - 1 - 3) / 3)]


def test_the_name_of_a_function_does_not_decide_what_its_metric_means():
    """Means of 2, 1, 0 and 1, and of minus 3, 1 and 3, in rollouts and on held-out prompts."""
    named = {"peak_max": {"path": f"{FILE}:sevens"}, "size_square": {"path": f"{FILE}:short"}}
    logger = ListLogger()
    reward = lambda: FunctionReward.of({"functions": named}, "reward")
    stage = attached(ppo(given(PPO, *FOUR), reward=reward, epochs=1, minibatches=2, **OWN), logger=logger)
    stage.collect(PROMPTS[:4], 0)
    assert logger["rollout/reward_peak_max"] == [pytest.approx(1)]
    assert logger["rollout/reward_size_square"] == [pytest.approx(-7 / 3)]
    stage.trainer.validate(stage, Batches([PROMPTS[:4]]), verbose=False)
    assert stage.trainer.callback_metrics["val/reward_peak_max"] == pytest.approx(1)
    assert stage.trainer.callback_metrics["val/reward_size_square"] == pytest.approx(-7 / 3)


def test_a_metric_of_a_function_that_applies_nowhere_is_left_out():
    logger = ListLogger()
    stage = attached(ppo(given(PPO, [3, 4, 7], [7, 6, 7]), reward=both, minibatches=1, **OWN), logger=logger)
    stage.collect(PROMPTS[:2], 0)
    assert logger["rollout/score"] == [pytest.approx(3.0)] and "rollout/reward_short" not in logger.logged


def test_a_fixed_score_for_responses_without_an_end_still_replaces_theirs():
    logger = ListLogger()
    changed = OWN | {"missing_end_score": -1.0}
    stage = attached(ppo(given(PPO, *FOUR), reward=sevens, minibatches=1, **changed), logger=logger)
    stage.collect(PROMPTS[:4], 0)
    assert logger["rollout/score"] == [pytest.approx((2 - 1 + 0 + 1) / 4)]


SLOW = pytest.mark.slow


@pytest.mark.parametrize("make", [grpo, *(pytest.param(make, marks=SLOW) for make in (ppo, rloo, rejection))])
def test_every_on_policy_stage_learns_to_please_a_function(make):
    """Sevens per response, from about a thirteenth of five tokens up."""
    logger = ListLogger()
    own = {"value_lr": 3e-3} if make is ppo else {"samples_per_prompt": 8}
    own |= {} if make is rejection else {"beta": 0.0}
    stage = make(reward=sevens, sampling=Sampling(5), optimizer=adam(1e-2), minibatches=1, **OWN, **own)
    fit_prompts(stage, 24, prompts=PROMPTS, per_rollout=8 if make is not ppo else 64, logger=logger)
    found = logger["rollout/reward_sevens"]
    assert found == pytest.approx(logger["rollout/score"])
    assert sum(found[-3:]) / 3 > found[0] + 1


def test_the_best_of_several_is_the_one_that_the_function_prefers():
    stage = attached(rejection(given(Rejection, *FOUR), reward=sevens, epochs=1, minibatches=1, **OWN))
    [batch] = stage.collect(PROMPTS[:1], 0)
    assert batch.packed.response_ids[batch.mask].tolist() == [7, 7, END]


def test_no_network_scores_so_none_is_counted_frozen_or_saved():
    stage = attached(grpo(given(GRPO, *FOUR), reward=sevens, epochs=1, minibatches=1, **OWN))
    assert dict(stage.named_children()).keys() == {"policy", "reference"} and stage.frozen == ("reference",)
    stage.collect(PROMPTS[:1], 0)
    forward = stage.policy.flops_per_token.forward
    assert stage.spent() == Spent(10, (10 + 2) * forward * 3)  # sampled, and read by policy and reference


def test_equal_scores_are_an_error_only_if_their_scale_is_to_be_measured():
    never = given(GRPO, [3, END], [4, END], [5, END], [6, END])
    stage = attached(grpo(never, reward=sevens, minibatches=1, **OWN))
    stage.collect(PROMPTS[:1], 0)
    measuring = attached(grpo(never, reward=sevens, minibatches=1, score_scale=None, missing_end_score=None))
    with pytest.raises(ValueError, match="the reward gives every response the same score.*stage.score_scale=1"):
        measuring.collect(PROMPTS[:1], 0)


def test_held_out_prompts_are_scored_by_the_same_functions():
    stage = attached(grpo(reward=both, **OWN))
    stage.trainer.validate(stage, Batches([PROMPTS[:3], PROMPTS[3:]]), verbose=False)
    metrics = stage.trainer.callback_metrics
    assert {"val/score", "val/reward_sevens", "val/reward_short"} <= set(metrics) and metrics["val/reward_short"] < 0


def test_a_record_and_its_columns_reach_the_function_once_per_response(data):
    """The world's own references, as a column; texts as the tokenizer decodes them, without special tokens."""
    module = data("grpo")
    seen = []

    class Watching(FunctionReward):
        def values(self, answered):
            seen.append(answered)
            return super().values(answered)

    size, stops = module.tokenizer.vocab_size, module.tokenizer.stop_ids
    stage = grpo(
        policy=lambda: causal(0, size),
        reward=lambda: Watching.of({"path": f"{FILE}:agrees"}, "reward"),
        stop_ids=stops,
        sampling=Sampling(6),
        samples_per_prompt=2,
        **OWN,
    )
    quiet_fit(trainer(max_steps=1, limit_val_batches=0), stage, datamodule=module)
    [answered] = seen
    assert len(answered.texts) == 12 and answered.columns["reference"][::2] == answered.columns["reference"][1::2]
    assert set(answered.columns["reference"]) <= {
        module.train_examples[i]["reference"] for i in range(len(module.train_examples))
    }
    assert [module.tokenizer.decode(ids) for ids in answered.ids] == answered.texts


def test_a_fault_in_the_middle_of_training_ends_it_with_the_record(tmp_path):
    (tmp_path / "r.py").write_text(
        "def f(completion_ids):\n    return [1 / (7 not in ids) for ids in completion_ids]\n"
    )
    reward = lambda: FunctionReward.of({"path": f"{tmp_path}/r.py:f"}, "reward")
    stage = attached(grpo(given(GRPO, *FOUR), reward=reward, **OWN))
    with pytest.raises(RewardError, match=r"reward f .* raised ZeroDivisionError(?s:.*)prompt: (?s:.*)response: "):
        stage.collect(PROMPTS[:1], 0)


@pytest.fixture
def folder(tmp_path, small_tokenizer) -> str:
    """A language model's artifact."""
    model = tiny_models.random_model(small_tokenizer.vocab_size, seed=0)
    store.write_artifact(tmp_path / "sft", card={"stage": "sft"}, tokenizer=small_tokenizer, model=model)
    return str(tmp_path / "sft")


def built(folder: str, **changes) -> PPO:
    policy = partial(store.load_causal_lm, path=folder, context=None)
    value = partial(store.load_value, path=folder, context=None)
    return attached(ppo(policy=policy, value=value, reward=sevens, **OWN, **changes))


def test_the_value_model_starts_on_the_policys_weights_with_a_head_that_predicts_0(folder):
    """A random head would add the variance of its predictions to that of the advantages until it has learned."""
    stage = built(folder)
    for (name, own), (_, policys) in zip(stage.value.model.named_parameters(), stage.policy.model.named_parameters()):
        assert torch.equal(own, policys) and own.data_ptr() != policys.data_ptr(), name
    assert not any(parameter.any() for parameter in stage.value.score.parameters())


def test_with_adapters_it_shares_the_policys_trunk_and_has_adapters_of_its_own(folder):
    stage = built(folder, run=RunContext(lora=LoRA(rank=2, alpha=4.0, dropout=0.0, targets=TARGETS)))
    assert stage.value.model is stage.policy.model is stage.reference.model
    assert stage.value.adapters is not stage.policy.adapters
    assert not any(parameter.any() for parameter in stage.value.score.parameters())
    trained = {name.split(".")[0] for name, p in stage.named_parameters() if p.requires_grad}
    assert trained == {"policy", "value"} and not any(p.requires_grad for p in stage.policy.model.parameters())


def test_any_folder_can_start_the_value_model(folder, tmp_path, small_tokenizer):
    reward = tiny_models.random_scalar(small_tokenizer.vocab_size, seed=3)
    store.write_artifact(tmp_path / "rm", card={"stage": "rm"}, tokenizer=small_tokenizer, model=reward)
    value = store.load_value(tmp_path / "rm")
    assert all(torch.equal(one, other) for one, other in zip(value.parameters(), reward.parameters()))
    assert type(store.load_value(folder)) is type(value)
