import pytest
import torch

from components.evaluation.measure.assessment import Assessed
from components.evaluation.measure.majority import majority, vote
from components.evaluation.measure.policy import Responses
from components.world.gold import Judgment


def test_one_vote_is_the_share_of_correct_answers_and_all_votes_are_the_majority():
    answers = torch.tensor([[0, 0, 1], [2, 1, 1]])
    correct = torch.tensor([0, 2])
    assert vote(answers, correct, 1, seed=0).tolist() == pytest.approx([2 / 3, 1 / 3])
    assert vote(answers, correct, 3, seed=0).tolist() == [1, 0]


def test_some_votes_are_the_mean_over_the_ways_to_pick_them():
    # pairs of right, right, wrong: one is right, two are ties that are right half of the time: 2/3
    rows = torch.tensor([[0, 0, 1], [0, 1, 0], [1, 0, 0]] * 20)
    found = vote(rows, torch.zeros(60, dtype=torch.int64), 2, seed=0)
    assert float(found.mean()) == pytest.approx(2 / 3, abs=1e-6)  # the three rows together see every subset alike


def test_the_curve_follows_the_known_one_of_a_policy_that_is_right_48_times_in_100():
    generator = torch.Generator().manual_seed(0)
    pool = torch.tensor([0] * 480 + [1 + place % 7 for place in range(520)])
    answers = torch.stack([pool[torch.randperm(1000, generator=generator)] for _ in range(20)])
    correct = torch.zeros(20, dtype=torch.int64)
    # seven wrong answers share the rest, ties split
    for k, expected in ((1, 0.48), (3, 0.58), (5, 0.73), (9, 0.87), (17, 0.97)):
        assert float(vote(answers, correct, k, seed=1).mean()) == pytest.approx(expected, abs=0.025)


def found(value):
    return Judgment(0.0, False, 0, False, False, False, 1, value, False)


def given(world, values):
    """The same answers, by value, to the first question of the world."""
    question = world.questions("held_out")[0]
    responses = Responses([[1]] * len(values), ["a"] * len(values), [True] * len(values), [0] * len(values))
    return question, Assessed(responses, [found(value) for value in values], None)


def test_an_answer_without_a_value_agrees_with_no_other(world):
    question, assessed = given(world, [None, None, world.questions("held_out")[0].answer])
    curve = majority(world, [question.text], assessed, seed=0)
    assert curve.k == [1, 3]
    assert curve.correct == pytest.approx([1 / 3, 1 / 3])  # three leaders with one vote each


def test_the_most_frequent_value_wins_whatever_the_others_say(world):
    answer = world.questions("held_out")[0].answer
    relation = world.questions("held_out")[0].relation
    wrong = [value for value in world.vocabulary.relations[relation].values if value != answer][:3]
    question, assessed = given(world, [answer, answer, *wrong])
    curve = majority(world, [question.text], assessed, seed=0)
    assert curve.k == [1, 3, 5]
    assert curve.correct[0] == pytest.approx(0.4) and curve.correct[2] == 1
    # of the 10 triples: 3 hold both right ones (1), 6 one (1/3, all differ), 1 none: 5/10
    assert curve.correct[1] == pytest.approx(0.5, abs=0.08)
    for (low, high), value in zip(curve.correct_ci, curve.correct, strict=True):
        assert 0 <= low <= value <= high <= 1
