"""The highest of several scores."""

import pytest

from components.prompting.best_of import BestOfN, Scored
from components.prompting.technique import Step, Tokens
from tests.kit.scripted import Scripted, question


def length(messages, answers):
    assert messages == question().messages
    return Scored([len(answer) for answer in answers], Tokens(read=10))


def test_the_first_of_the_highest_wins_and_scoring_costs_too():
    made = BestOfN(length, 3)(model := Scripted("a", "ccc", "bbb"), question())
    assert made.answers[0].text == "ccc" and model.queries[0].n == 3
    assert made.tokens == Tokens(read=5 + 10, sampled=3)
    assert made.answers[0].trace == (Step("best_of_n", "the highest of 3 scores, 3; the lowest is 1"),)


def test_several_answers_are_chosen_among_samples_of_their_own():
    made = BestOfN(length, 2)(Scripted("a", "bb", "dddd", "ccc"), question(n=2))
    assert [one.text for one in made.answers] == ["bb", "dddd"] and made.tokens.read == 5 + 20


def test_settings_without_effect_are_refused():
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        BestOfN(length, 0)
    with pytest.raises(ValueError, match="8 samples at temperature 0 are all the same"):
        BestOfN(length)(Scripted(), question(temperature=0.0))
