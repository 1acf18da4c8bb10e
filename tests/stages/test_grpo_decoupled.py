"""GRPO with stage.decouple_rewards: several rewards, each compared by itself with the others of its group (GDPO)."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from components.rewards.functions import FunctionReward
from components.stages.grpo import GRPO
from tests.kit import tiny_models
from tests.kit.tiny_stages import (
    END,
    PROMPTS,
    CountsSevens,
    ListLogger,
    attached,
    by_prompt,
    experience_of,
    fit_prompts,
    given,
    grpo,
    same_bits,
    weights,
)

FILE = Path(tiny_models.__file__).with_name("rewards.py")
TWO = {"sevens": {"path": f"{FILE}:sevens", "weight": 2}, "short": {"path": f"{FILE}:short", "weight": 0.5}}
OWN = {"score_scale": 1.0, "missing_end_score": None, "decouple_rewards": True}


def two() -> FunctionReward:
    return FunctionReward.of({"functions": TWO}, "reward")


def decoupled(kind: type[GRPO] = GRPO, **changes) -> GRPO:
    return grpo(kind, **({"reward": two, "epochs": 1, "minibatches": 1} | OWN | changes))


def advantages(batch) -> list[float]:
    return batch.advantages[:, 0].tolist()


def test_rewards_are_compared_one_by_one_within_the_group_and_their_sum_is_scaled_over_the_rollout():
    """Sevens 2, 1, 0, 1: mean 1, deviation √(2/3). Short: −3, not applicable (no end), −1, −3: mean −7/3, deviation
    √(4/3). Weights 2 and 0.5. The second group's rewards are all equal."""
    logger = ListLogger()
    first, second = ([7, 7, END], [3, 4, 7], [END], [6, 7, END]), [[7, END]] * 4
    stage = attached(decoupled(given(GRPO, *first, *second)), logger=logger)
    [batch] = stage.collect(PROMPTS[:2], 0)
    sevens = torch.tensor([1.0, 0.0, -1.0, 0.0]) / ((2 / 3) ** 0.5 + 1e-4)
    short = torch.tensor([-2 / 3, 0.0, 4 / 3, -2 / 3]) / ((4 / 3) ** 0.5 + 1e-4)
    sums = torch.cat([2 * sevens + 0.5 * short, torch.zeros(4)])
    expected = sums / ((float(sums.square().sum()) / 7) ** 0.5 + 1e-4)
    assert_close(torch.tensor(advantages(batch)), expected, atol=1e-6, rtol=0)
    assert (batch.advantages[4:] == 0).all() and logger["rollout/equal_groups"] == [0.5]
    assert (batch.advantages == batch.advantages[:, :1]).all()  # a response's is that of each of its tokens


def test_a_group_with_equal_scores_of_different_rewards_still_teaches():
    """2·1 + 0.5·(−2) = 2·0.5 + 0.5·0 = 2·0 + 0.5·2 = 1 three times, and 2·0.5 + 0.5·0 again."""
    parts = torch.tensor([[1.0, -2.0], [0.5, 0.0], [0.0, 2.0], [0.5, 0.0]])
    experience = experience_of(torch.ones(4), torch.ones(4, 1, dtype=torch.bool), reward_parts=parts)
    together = attached(decoupled(decouple_rewards=False)).advantages(experience).advantages
    alone = attached(decoupled()).advantages(experience).advantages
    assert together.abs().max() == 0 and alone.abs().min() < 1e-6 < 1 < alone.abs().max()


EQUAL = [[7, END], [7, END]]
BALANCED = [[7, 3, 3, 3, 3, END], [3, END]]  # 2·1 − 0.5·6 = 2·0 − 0.5·2
LONG = [[7, 7, 7, 7, 7, END], [3, END]]


def test_groups_refill_by_what_the_rewards_teach_and_keep_them():
    """The first group's scores differ. The second has one score for two combinations of rewards, which weights 2 and
    0.5 keep apart once each is normalized, so only the third is replaced."""
    prompts = {prompt["ids"][-1]: prompt for prompt in PROMPTS}
    kinds = {3: [[7, END], [3, END]], 6: BALANCED, 8: EQUAL, 15: LONG}
    asked = []

    def further(count: int) -> list[dict]:
        asked.append(count)
        return [prompts[15]] * count

    logger = ListLogger()
    stage = attached(decoupled(by_prompt(kinds), samples_per_prompt=2, refill=1), logger=logger)
    [batch] = stage.collect([prompts[last] for last in (3, 6, 8)], 0, further)
    assert asked == [1]
    assert logger["rollout/refilled"] + logger["rollout/equal_groups"] == pytest.approx([1 / 3, 1 / 3])
    half = 0.5**0.5
    sums = torch.tensor([2, -2, 1.5, -1.5, 1.5, -1.5]) * half  # long and correct: 2 − 0.5; the first has equal lengths
    assert_close(torch.tensor(advantages(batch)), sums / ((float(sums.square().sum()) / 5) ** 0.5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("reward", [two, CountsSevens])
def test_a_refilled_rollout_keeps_the_parts_of_its_rewards(reward: Callable):
    prompts = [prompt for prompt in PROMPTS[:2] for _ in range(2)]
    kinds = {3: EQUAL, 6: EQUAL, 15: LONG}
    stage = attached(
        grpo(by_prompt(kinds), samples_per_prompt=2, refill=1, reward=reward, score_scale=1.0, missing_end_score=None)
    )
    with stage.collecting():
        first = stage.scored(prompts, None)
        _, found = stage.refilled(prompts, first, 0, lambda count: [PROMPTS[6]] * count)
    assert found.mask.shape == (4, 6)
    if reward is CountsSevens:  # a model: no parts
        assert found.reward_parts is None
    else:
        assert found.reward_parts.tolist() == [[5.0, -6.0], [0.0, -2.0]] * 2
        assert found.rewards.tolist() == [7.0, -1.0] * 2


def test_one_reward_or_a_model_is_refused_since_nothing_is_to_be_decoupled():
    one = lambda: FunctionReward.of({"path": f"{FILE}:sevens"}, "reward")
    for changes, count in (({"reward": one}, 1), ({}, 0)):
        with pytest.raises(
            ValueError, match=f"stage.decouple_rewards: .* expected several .* got {count}.*reward.functions"
        ):
            attached(grpo(**OWN | changes))


def test_settings_that_it_would_ignore_are_refused():
    with pytest.raises(ValueError, match=r"stage.decouple_rewards: .*dr_grpo.*expected .*grpo, dapo, gspo, cispo"):
        decoupled(variant="dr_grpo")
    with pytest.raises(ValueError, match=r"stage.missing_end_score: got -3.0.*stage.decouple_rewards.*finished"):
        decoupled(missing_end_score=-3.0)


def test_it_learns_and_trains_other_weights_than_the_sum_normalized():
    trained = []
    for together in (True, False):
        stage = decoupled(decouple_rewards=not together)
        fit_prompts(stage, 2, per_rollout=2)
        trained.append(weights(stage.policy))
    assert not same_bits(*trained)
