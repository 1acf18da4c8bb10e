"""Techniques by name."""

from contextlib import suppress
from dataclasses import fields

import pytest

from components.prompting.best_of import BestOfN, Scored
from components.prompting.constrained import Constrained
from components.prompting.named import TECHNIQUES, techniques_of
from components.prompting.reflection import Reflection


def zeros(messages, answers):
    return Scored([0.0] * len(answers))


def made(*given):
    return techniques_of(given, lambda name: zeros)


def test_names_and_settings_become_techniques_in_order():
    given = [{"name": "reflection", "rounds": 2}, {"name": "constrained", "choices": ["a", "b"]}]
    assert made(*given) == [Reflection(rounds=2), Constrained(choices=["a", "b"])]
    assert made({"name": "best_of_n", "score": "rm"}) == [BestOfN(zeros)]
    (using,) = made({"name": "tool_use", "tools": ["calculator"]})
    assert using.tools[0].result({"expression": "1 + 1"}) == "2"


@pytest.mark.parametrize("name", TECHNIQUES)
def test_whatever_a_setting_is_it_fits_or_is_refused(name):
    for field in fields(TECHNIQUES[name]):
        for odd in (None, True, -1, 0, 10**30, 0.5, "", "(", [], [None], [[]], {}, {"name": {}}, [{"name": 5}]):
            with suppress(ValueError):
                assert made({"name": name, field.name: odd})


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, f"got the name None, expected one of {', '.join(TECHNIQUES)}"),
        ({"name": "reflection", "round": 2}, "reflection: it has no setting 'round'; did you mean rounds?"),
        ({"name": "reflection", "x": 2}, "reflection: it has no setting 'x'; there are rounds, criticize, revise"),
        ({"name": "reflection", "rounds": "many"}, "reflection: rounds: input should be a valid integer"),
        ({"name": "reflection", "rounds": 0}, "reflection: rounds: expected at least 1, got 0"),
        ({"name": "tool_use", "tools": ["shell"]}, "tool_use: tools: got 'shell', expected calculator or lookup"),
        ({"name": "tool_use", "tools": [{"name": "lookup"}]}, "tool_use: lookup: documents: missing"),
        ({"name": "tool_use", "tools": [{"name": []}]}, "tool_use: tools: got [], expected calculator or lookup"),
        ({"name": "tool_use", "tools": 3}, "tool_use: tools: input should be"),
        ({"name": "tool_use"}, "tool_use: tools: field required"),
        ({"name": ["reflection"]}, "got the name ['reflection'], expected one of"),
        ({"name": "retrieval", "documents": "fev is red ."}, "retrieval: documents:"),
    ],
)
def test_what_does_not_exist_or_fit_is_said(given, message):
    with pytest.raises(ValueError) as raised:
        made(given)
    assert str(raised.value).removeprefix("technique: ").startswith(message)
