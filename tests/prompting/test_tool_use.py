"""Calls, their results, and the answer after them."""

import json

import pytest

from components.prompting.technique import Answer, Call, Step, Tokens
from components.prompting.tool_use import ToolUse
from components.prompting.tools import Tool, calculator
from tests.kit.scripted import Scripted, question

SIZE = Tool("size", "the length of a text", ["text"], lambda text: str(len(text)))


def calling(name, arguments, text=""):
    written = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return Answer(text, calls=[Call(f"id {name}", name, written)])


def test_the_result_of_a_call_is_in_the_conversation_that_the_model_continues():
    call = calling("calculator", {"expression": "4 + 3"}, "Let me see.")
    made = ToolUse([calculator(), SIZE])(model := Scripted(call, "It is 7."), question("4 + 3 ?"))
    (answer,) = made.answers
    first, second = model.queries
    assert [tool["function"]["name"] for tool in first.tools] == ["calculator", "size"]
    assert second.messages[0] == first.messages[0] and second.tools == first.tools and second.seed != first.seed
    spoken, result = second.messages[1:]
    assert spoken["role"] == "assistant" and spoken["content"] == "Let me see."
    assert spoken["tool_calls"][0]["function"]["name"] == "calculator"
    expected = {"role": "tool", "content": "7", "name": "calculator", "tool_call_id": "id calculator"}
    assert result == expected
    assert answer.text == "It is 7." and answer.trace == (Step("tool_use", 'calculator({"expression": "4 + 3"}) → 7'),)
    assert made.tokens == Tokens(read=4 + 4 + 3 + 1, sampled=3 + 3)


def test_each_of_several_answers_continues_with_its_own_calls():
    model = Scripted(calling("size", {"text": "ab"}), "none", calling("size", {"text": "abc"}), "two", "three")
    made = ToolUse([SIZE])(model, question(n=3))
    assert [one.text for one in made.answers] == ["two", "none", "three"] and [one.n for one in model.queries] == [
        3,
        1,
        1,
    ]
    assert [query.messages[-1]["content"] for query in model.queries[1:]] == ["2", "3"]


@pytest.mark.parametrize(
    "call, result",
    [
        (calling("size", {"txt": "a"}), 'error: expected the arguments text, as texts, got {"txt": "a"}'),
        (calling("size", {"text": 3}), 'error: expected the arguments text, as texts, got {"text": 3}'),
        (calling("width", {}), "error: no tool width; there are size, calculator"),
        (calling("calculator", {"expression": "open('x')"}), "error: expected numbers"),
    ],
)
def test_what_is_wrong_with_a_call_goes_back_to_the_model(call, result):
    model = Scripted(call, "sorry")
    ToolUse([SIZE, calculator()])(model, question())
    assert model.queries[1].messages[-1]["content"].startswith(result)


def test_it_ends_after_so_many_rounds_or_at_a_call_that_is_not_json():
    again = calling("size", {"text": "a"})
    model = Scripted(again, again, again)
    assert ToolUse([SIZE], rounds=2)(model, question()).answers[0].calls and not model.script
    broken = calling("size", "{text", "well")
    assert ToolUse([SIZE])(Scripted(broken), question()).answers[0].text == "well"


def test_tools_are_expected_once_each():
    for tools in ([], [SIZE, SIZE]):
        with pytest.raises(ValueError, match="tools: expected at least one, all of different names"):
            ToolUse(tools)
    with pytest.raises(ValueError, match="the query has tools already"):
        ToolUse([SIZE])(Scripted(), question(tools=[SIZE.schema]))
