"""Examples come before the conversation."""

import pytest

from components.prompting.few_shot import FewShot
from components.prompting.technique import Query
from tests.kit.scripted import Scripted

ONE = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def test_examples_follow_the_system_message():
    system, asked = {"role": "system", "content": "Be short."}, {"role": "user", "content": "?"}
    model = Scripted("!")
    FewShot(ONE)(model, Query([system, asked]))
    assert model.queries[0].messages == [system, *ONE, asked]


@pytest.mark.parametrize("examples", [[], ONE[:1], ONE[::-1], [{"content": "q"}, ONE[1]]])
def test_examples_that_are_no_turns_are_refused(examples):
    with pytest.raises(ValueError, match="few_shot: examples: expected messages of the roles user, assistant"):
        FewShot(examples)
