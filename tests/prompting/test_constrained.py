"""Formats as the API names them."""

import pytest

from components.prompting.constrained import Constrained
from tests.kit.scripted import Scripted, question

SCHEMA = {"type": "object"}


@pytest.mark.parametrize(
    "settings, form",
    [
        ({"regex": "[0-9]+"}, {"type": "regex", "regex": "[0-9]+"}),
        ({"choices": ["red", "blue"]}, {"type": "choice", "choices": ["red", "blue"]}),
        ({"json_schema": SCHEMA}, {"type": "json_schema", "json_schema": {"schema": SCHEMA}}),
    ],
)
def test_the_query_gets_the_format(settings, form):
    Constrained(**settings)(model := Scripted("7"), question())
    assert model.queries[0].response_format == form


@pytest.mark.parametrize("settings", [{}, {"regex": "a", "choices": ["b"]}])
def test_exactly_one_format_is_expected(settings):
    with pytest.raises(ValueError, match="expected one of json_schema, regex and choices"):
        Constrained(**settings)


def test_a_second_format_is_refused():
    with pytest.raises(ValueError, match="a response_format already"):
        Constrained(regex="a")(Scripted(), question(response_format={"type": "json_object"}))
