"""Votes of several samples."""

import pytest

from components.prompting.self_consistency import SelfConsistency
from components.prompting.technique import Answer, Step, Tokens
from tests.kit.scripted import Scripted, question


def elected(*texts, **settings):
    (answer,), _ = SelfConsistency(len(texts), **settings)(Scripted(*texts), question())
    return answer


@pytest.mark.parametrize(
    "texts, extract, winner",
    [
        (("blue", "red", "red"), None, "red"),
        (("Red.", "blue", " red !"), None, "Red."),  # case, space and the end's marks do not count
        (("blue", "red"), None, "blue"),  # a tie: the first
        (("a: 12", "it is 12", "13"), "number", "a: 12"),
        (("3 + 4 = 7", "7 or 8", "so 7"), "number", "3 + 4 = 7"),
        (("well,\nred", "red", "blue"), "line", "well,\nred"),
        (("well,\n red .\n\n   \n", "blue", "red"), "line", "well,\n red .\n\n   \n"),
        (("blue", "red . ! ", "Red"), None, "red . ! "),
        (("?", "?", "is blue"), "is (\\w+)", "is blue"),  # answers without a match do not vote
        (("a", "b", "b"), "is (\\w+)", "a"),  # nobody matches: all are equal
    ],
)
def test_the_first_of_the_most_frequent_answers_wins(texts, extract, winner):
    assert elected(*texts, extract=extract).text == winner


def test_the_count_is_the_last_step_of_the_trace():
    first = Answer("red", trace=(Step("tool_use", "looked up"),))
    assert elected("blue", first, "red").trace == (*first.trace, Step("self_consistency", "red ×2, blue ×1"))


def test_several_answers_are_elected_by_samples_of_their_own():
    made = SelfConsistency(3)(model := Scripted("a", "b", "b", "c", "a", "c"), question(n=2))
    assert [one.text for one in made.answers] == ["b", "c"] and model.queries[0].n == 6
    assert made.tokens == Tokens(read=5, sampled=6)


def test_settings_without_effect_are_refused():
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        SelfConsistency(0)
    with pytest.raises(ValueError, match=r"extract='\(' is not a regular expression"):
        SelfConsistency(extract="(")
    with pytest.raises(ValueError, match="3 samples at temperature 0 are all the same"):
        SelfConsistency(3)(Scripted(), question(temperature=0.0))
