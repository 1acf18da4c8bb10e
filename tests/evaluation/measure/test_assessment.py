import pytest
import torch

from components.evaluation.measure.assessment import Assessed, Judges, assess, win_credits, win_rate
from components.evaluation.measure.policy import Responses


def answers(scores, samples):
    of = [number // samples for number in range(len(scores))]
    responses = Responses([[1]] * len(scores), ["a"] * len(scores), [True] * len(scores), of)
    return Assessed(responses, None, torch.tensor(scores))


def test_an_answers_credit_is_the_share_of_others_that_it_beats_with_ties_as_half():
    # 1 beats 0 and 0 and ties with 1: 2.5 of 3; 0 ties with 0 and 0 and loses to 1: 1 of 3
    found = win_credits(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]]))
    torch.testing.assert_close(found, torch.tensor([[2.5 / 3, 1 / 3]]))


def test_answers_are_compared_only_within_their_prompt():
    # prompt 0: 5 against 1, 9: ½; prompt 1: 0 against 3, 4: 0. Across prompts 5 would beat 3 and 4
    found = win_rate(answers([5.0, 0.0], 1), answers([1.0, 9.0, 3.0, 4.0], 2))
    assert found.win_rate == 0.25
    assert found.win_rate_ci[0] < 0.25 < found.win_rate_ci[1]


def test_a_model_and_another_win_together_all_pairs():
    one, other = answers([0.1, 0.5, 2.0, -1.0], 2), answers([0.5, 0.2, 2.0, 3.0], 2)
    assert win_rate(one, other).win_rate + win_rate(other, one).win_rate == pytest.approx(1)


def test_the_reference_against_itself_is_half_without_an_interval():
    itself = answers([0.3, 0.1, 0.2, 0.9, 0.9, -1.0], 3)
    assert win_rate(itself, itself._replace(judgments=None)).win_rate == pytest.approx(0.5)
    assert win_rate(itself, itself) == (0.5, None)


def test_without_a_judge_or_reward_model_there_is_no_win_rate():
    silent = answers([0.0], 1)._replace(scores=None)
    assert win_rate(silent, silent) is None


def test_gold_decides_if_there_is_a_judge(world, tokenizer, reward, chat_prompts):
    prompts = chat_prompts("held_out")[:1]
    question = world.find(prompts[0]["prompt"])
    texts = [world.statement(question), "ugh ."]
    responses = Responses([tokenizer.encode(text) for text in texts], texts, [True, True], [0, 0])
    found = assess(responses, prompts, Judges(tokenizer, world, reward))
    assert found.worth.tolist() == [1.0, -1.0]
    assert found.scores.shape == (2,)
    alone = assess(responses, prompts, Judges(tokenizer, None, reward))
    assert torch.equal(alone.worth, found.scores)
