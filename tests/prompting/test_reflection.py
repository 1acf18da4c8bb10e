"""An answer, its criticism, and a better answer."""

import pytest

from components.prompting.reflection import Reflection
from components.prompting.technique import Step, Tokens
from tests.kit.scripted import Scripted, question


def test_the_conversation_goes_on_with_criticism_and_a_revised_answer():
    model = Scripted("blue", "blue is wrong", "red")
    form = {"type": "json_object"}
    made = Reflection(criticize="Check.", revise="Again.")(model, question("color ?", response_format=form))
    (answer,) = made.answers
    assert answer.text == "red"
    assert answer.trace == (Step("reflection", "blue"), Step("reflection", "blue is wrong"))
    draft, criticism, revision = model.queries
    assert [one["content"] for one in revision.messages] == ["color ?", "blue", "Check.", "blue is wrong", "Again."]
    assert [one["role"] for one in revision.messages] == ["user", "assistant"] * 2 + ["user"]
    assert criticism.messages == revision.messages[:3] and draft.messages == revision.messages[:1]
    assert [one.response_format for one in model.queries] == [form, None, form]
    assert len({one.seed for one in model.queries}) == 3
    assert made.tokens == Tokens(read=2 + 4 + 8, sampled=1 + 3 + 1)


def test_a_second_round_starts_from_the_revised_answer():
    model = Scripted("a", "bad", "b", "fine", "c")
    (answer,), _ = Reflection(rounds=2)(model, question())
    assert [step.text for step in answer.trace] == ["a", "bad", "b", "fine"] and answer.text == "c"
    assert model.queries[3].messages[1]["content"] == "b" and len(model.queries[3].messages) == 3


def test_no_round_is_refused():
    with pytest.raises(ValueError, match="rounds: expected at least 1, got 0"):
        Reflection(rounds=0)
