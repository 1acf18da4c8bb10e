"""Tool calls as templates write them, found in what a model says."""

import json

import pytest

from components.serving.api_errors import ApiError
from components.serving.calls import CallFormat, CallReader, checked, format_of
from components.serving.constraint import Grammars, tool_schema
from tests.kit import tiny_models, tool_templates

TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}},
    {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}},
]
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "add", "arguments": {"a": [1, 2], "b": "<é>"}}}


@pytest.fixture(scope="module", params=["QWEN25", "QWEN3", "LLAMA31"])
def tokenizer(request, small_tokenizer):
    return tiny_models.with_template(small_tokenizer, getattr(tool_templates, request.param))


def said(tokenizer, *calls):
    """What the model says to make calls, as it is trained to."""
    ids = tokenizer.answer({"role": "assistant", "content": "", "tool_calls": list(calls)}, TOOLS)
    return tokenizer.decode([token for token in ids if token not in tokenizer.stop_ids], skip_special=False)


def read(tokenizer, text, size=3):
    """(said, calls) of a text that arrives in pieces."""
    reader = CallReader(format_of(tokenizer, TOOLS))
    shown = "".join(reader.push(text[start : start + size]) for start in range(0, len(text), size))
    rest, calls = reader.end()
    return shown + rest, [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_call_is_found_as_the_template_writes_it(tokenizer, size):
    shown, calls = read(tokenizer, said(tokenizer, CALL), size)
    assert calls == [("add", {"a": [1, 2], "b": "<é>"})] and not shown.strip()


def test_text_before_a_call_is_said_and_several_calls_are_found(tokenizer):
    form = format_of(tokenizer, TOOLS)
    if not form.mark:
        pytest.skip("this family makes one call, alone")
    text = "Let me see. " + said(tokenizer, CALL) + said(tokenizer, CALL)
    shown, calls = read(tokenizer, text)
    assert shown.strip() == "Let me see." and [name for name, _ in calls] == ["add", "add"]


@pytest.mark.parametrize("text", ["hello", "1 < 2 and 3", "<tool_call", '{"name": 5}', "[1]", "{" * 5000])
def test_what_is_no_call_is_said(tokenizer, text):
    assert read(tokenizer, text) == (text, [])


WORD = CallFormat("\ncall ", "", "name", "arguments", False)
ADD = '{"name": "add", "arguments": {}}'


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    "before",
    ["i will call it . ", "called , then recall : ", "call {it} . ", 'call {"name": 5} , call [1] ; ', "calcal"],
)
def test_a_mark_in_the_text_before_a_call_does_not_hide_it(before, size):
    text = f"{before}call {ADD} and {before}call \n{ADD}"
    reader = CallReader(WORD)
    shown = "".join(reader.push(text[start : start + size]) for start in range(0, len(text), size))
    rest, calls = reader.end()
    assert shown + rest == f"{before}and {before}" and [call["function"]["name"] for call in calls] == ["add", "add"]


def test_text_with_a_mark_that_opens_no_call_is_said_at_once():
    reader = CallReader(WORD)
    assert [reader.push(piece) for piece in ("i will ca", "ll", " ", "it . c", "at")] == [
        "i will ",
        "",
        "",
        "call it . ",
        "cat",
    ]
    assert reader.end() == ("", [])


def test_a_forced_call_is_held_to_the_tools(tokenizer):
    pytest.importorskip("llguidance")
    form = format_of(tokenizer, TOOLS)
    grammars = Grammars(tokenizer, tokenizer.vocab_size)
    constraint = grammars.of_calls(form.opening, tool_schema(TOOLS, form.name, form.arguments), form.closing)()
    text = form.opening + json.dumps({form.name: "find", form.arguments: {}}) + form.closing
    for token in tokenizer.encode(text):
        assert constraint.allowed()[token]
        constraint.accept(token)
    allowed = constraint.allowed().nonzero().flatten().tolist()
    assert set(allowed) == set(tokenizer.stop_ids)


def test_a_template_without_tools_is_refused(small_tokenizer):
    with pytest.raises(ApiError, match="cannot write tool calls"):
        format_of(small_tokenizer, TOOLS)


NAMED = {"name": "add"}
BAD_TOOLS = [
    5,
    {},
    {"type": "function"},
    {"type": "function", "function": {"name": 1}},
    {"function": NAMED},
    {"type": "custom", "function": NAMED},
    {"type": "function", "function": NAMED | {"parameters": "a text"}},
]


@pytest.mark.parametrize("tool", BAD_TOOLS)
def test_a_tool_that_is_not_a_named_function_is_refused(tool):
    with pytest.raises(ApiError, match=r"tools\[0\]"):
        checked([tool])
