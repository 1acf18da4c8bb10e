"""Automatic judges: their rankings, and how often they are made to err."""

import math
import random
from collections import Counter

import pytest
import torch

from components.comparing.judges import RewardJudge, WorldJudge, dense, sampled_ranks


def asked(question):
    return [{"role": "user", "content": question}]


@pytest.fixture
def answers(world):
    """A question as a prompt, answers worth 1.25, 1, −0.5, 1, 0.5: correct+polite, correct, wrong, correct, rude."""
    question = world.questions("train")[0]
    values = world.vocabulary.relations[question.relation].values
    wrong = next(value for value in values if value != question.answer)
    right = world.statement(question, question.answer)
    language = world.vocabulary
    polite, rude = (language.write(getattr(language, habit)[0]) for habit in ("polite_before", "rude"))
    said = [
        language.join([polite, right]),
        right,
        world.statement(question, wrong),
        language.join([right, "."]),
        language.join([rude, right]),
    ]
    worth = [world.judge(question.text, one, True).gold for one in said]
    assert worth == [1.25, 1.0, -0.5, 1.0, 0.5]
    return asked(question.text), said


def scoring(reward, tokenizer, temperature, values=None):
    judge = RewardJudge(
        reward=lambda: reward, tokenizer=tokenizer, to_device=lambda model: model.eval(), temperature=temperature
    )
    if values is not None:
        judge.scores = lambda prompt, completions: [values[completion] for completion in completions]
    return judge


def test_ranks_are_dense_and_equal_values_share_one():
    assert dense([0.5, -1.0, 0.5, 7.0]) == [1, 0, 1, 2]


def test_the_world_ranks_by_true_worth_and_equal_worth_ties(world, answers):
    assert WorldJudge(world=world, noise=0.0).rank(*answers, random.Random(0)) == [0, 1, 3, 1, 2]


def test_a_flipped_record_has_the_reversed_ranking_and_ties_stay_ties(world, answers):
    assert WorldJudge(world=world, noise=1.0).rank(*answers, random.Random(0)) == [3, 2, 0, 2, 1]


def test_noise_is_the_share_of_flipped_records(world, answers):
    judge = WorldJudge(world=world, noise=0.2)
    right = WorldJudge(world=world, noise=0.0).rank(*answers, random.Random(0))
    turned = sum(judge.rank(*answers, random.Random(f"a/{n}")) != right for n in range(1000))
    assert turned == pytest.approx(200, abs=4 * math.sqrt(1000 * 0.2 * 0.8))


def test_the_last_message_is_what_the_world_judges(world, answers):
    prompt, said = answers
    other = world.questions("train")[1].text
    before = [{"role": "user", "content": other}, {"role": "assistant", "content": "?"}]
    assert WorldJudge(world=world, noise=0.0).rank([*before, *prompt], said, random.Random(0)) == [0, 1, 3, 1, 2]


def test_the_world_judges_only_its_own_prompts():
    with pytest.raises(ValueError, match="judge=reward .*judge=human"):
        WorldJudge(world=None, noise=0.0)


def test_at_a_temperature_the_world_ranks_two_answers_as_bradley_and_terry_have_it(world, answers):
    prompt, (polite, _, wrong, *_) = answers  # worth 1.25 and −0.5
    judge = WorldJudge(world=world, noise=0.0, temperature=2.0)
    first = sum(judge.rank(prompt, [wrong, polite], random.Random(f"a/{n}")) == [1, 0] for n in range(2000))
    expected = 1 / (1 + math.exp(-1.75 / 2))
    assert first == pytest.approx(2000 * expected, abs=4 * math.sqrt(2000 * expected * (1 - expected)))
    assert judge.rank(prompt, [wrong, wrong], random.Random(0)) == [0, 0]
    with pytest.raises(ValueError, match="judge.temperature: got -1"):
        WorldJudge(world=world, noise=0.0, temperature=-1.0)


@pytest.mark.parametrize("noise", [-0.1, 1.1])
def test_a_noise_that_is_not_a_probability_is_refused(world, noise):
    with pytest.raises(ValueError, match="judge.noise"):
        WorldJudge(world=world, noise=noise)


def test_a_reward_model_ranks_by_the_score_at_the_end_of_turn_after_the_prompt(reward, tokenizer, answers):
    prompt, said = answers
    alone = []
    for one in said:
        ids = [*tokenizer.render_prompt(prompt), *tokenizer.encode(one), tokenizer.end_id]
        alone.append(float(reward(torch.tensor([ids]))[0, -1].detach()))
    judge = scoring(reward, tokenizer, 0.0)
    assert judge.scores(prompt, said) == pytest.approx(alone, abs=1e-4)
    by_score = sorted(range(5), key=lambda place: -alone[place])
    assert judge.rank(prompt, said, random.Random(0)) == [by_score.index(place) for place in range(5)]


def test_two_completions_are_ranked_as_bradley_and_terry_say(reward, tokenizer):
    # scores 1 and 0: P(first above) = σ(1/T): .7311 at T = 1, .6225 at T = 2
    for temperature, share in ((1.0, 0.7311), (2.0, 0.6225)):
        judge = scoring(reward, tokenizer, temperature, {"a": 1.0, "b": 0.0})
        above = sum(judge.rank([], ["a", "b"], random.Random(n)) == [0, 1] for n in range(4000))
        assert above / 4000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000))


def test_three_completions_are_ranked_as_plackett_and_luce_say():
    # weights 3, 2, 1: P(order 0, 1, 2) = 3/6 · 2/3 = 1/3;  P(2, 1, 0) = 1/6 · 2/5 = 1/15
    values = [math.log(3), math.log(2), 0.0]
    found = Counter(tuple(sampled_ranks(values, 1.0, random.Random(n))) for n in range(6000))
    for ranks, share in (((0, 1, 2), 1 / 3), ((2, 1, 0), 1 / 15)):
        assert found[ranks] / 6000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 6000))


def test_scores_far_apart_are_ranked_in_their_order():
    assert sampled_ranks([-1e5, 1e5, 0.0], 0.1, random.Random(0)) == [2, 0, 1]


def test_equal_completions_have_equal_ranks_even_when_sampled(reward, tokenizer):
    judge = scoring(reward, tokenizer, 1.0, {"a": 0.0, "b": 0.0})
    found = {tuple(judge.rank([], ["a", "b", "a"], random.Random(n))) for n in range(50)}
    assert found == {(0, 1, 0), (1, 0, 1)}


@pytest.mark.parametrize("temperature", [-1.0, math.inf, math.nan])
def test_an_invalid_temperature_is_refused(reward, tokenizer, temperature):
    with pytest.raises(ValueError, match="judge.temperature"):
        scoring(reward, tokenizer, temperature)
