"""Fields of a record besides role and content are read correctly, or refused by name."""

import json
import re

import pytest

from components.data.records import formats
from components.data.records.dialogue import unread
from components.data.records.errors import Unread

ASK = {"role": "user", "content": "weather ?"}
ANSWER = {"role": "assistant", "content": "sunny ."}
SYSTEM = {"role": "system", "content": "Answer in French."}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "toz"}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "sunny"}
TOOL = {"type": "function", "function": {"name": "weather"}}
OLD = [{"role": "user", "content": "first question"}, {"role": "assistant", "content": "first answer"}]
HISTORY = [["first question", "first answer"]]


def messages(*said, **columns):
    return formats.chat({"messages": list(said), **columns})["messages"]


@pytest.mark.parametrize(
    "turn",
    [
        {"content": "", "tool_calls": [CALL]},
        {"content": None, "tool_calls": [CALL]},
        {"tool_calls": [{"function": {"name": "weather", "arguments": '{"place": "toz"}'}}]},
        {"content": "", "function_call": {"name": "weather", "arguments": '{"place": "toz"}'}},
        {"content": "", "tool_calls": [CALL], "function_call": None},
    ],
)
def test_a_call_of_a_tool_is_part_of_the_answer_however_it_is_written(turn):
    assert messages(ASK, {"role": "assistant", **turn}) == [ASK, CALLING]


def test_a_tool_answers_between_two_turns_of_the_assistant():
    told = {**RESULT, "tool_call_id": "a", "name": "weather"}
    assert messages(ASK, CALLING, told, RESULT, ANSWER) == [ASK, CALLING, told, RESULT, ANSWER]
    assert messages(ASK, CALLING, {"role": "function", "content": "sunny"}, ANSWER)[2] == RESULT
    assert messages(ASK, CALLING, ASK, ANSWER) == [ASK, CALLING, ASK, ANSWER]  # without a tool's message
    for order in ([ASK, RESULT, ANSWER], [RESULT, ANSWER], [ASK, CALLING, RESULT, ASK, ANSWER]):
        with pytest.raises(formats.FormatError, match="in turns"):
            messages(*order)


def test_calls_and_results_of_sharegpt_are_those_of_messages():
    turns = [("human", "weather ?"), ("function_call", '{"name": "weather", "arguments": {"place": "toz"}}')]
    turns += [("observation", "sunny"), ("gpt", "sunny .")]
    row = {"conversations": [{"from": speaker, "value": said} for speaker, said in turns], "tools": "[]"}
    assert formats.chat(row) == {"messages": [ASK, CALLING, RESULT, ANSWER]}
    assert formats.chat(row | {"tools": '[{"name": "weather"}]', "system": "Answer in French."}) == {
        "messages": [SYSTEM, ASK, CALLING, RESULT, ANSWER],
        "tools": [TOOL],
    }


@pytest.mark.parametrize(
    "column", [{"tools": [TOOL]}, {"tools": '[{"name": "weather"}]'}, {"functions": [{"name": "weather"}]}]
)
@pytest.mark.parametrize(
    ("normalize", "row"),
    [
        (formats.chat, {"messages": [ASK, ANSWER]}),
        (formats.preference, {"prompt": "weather ?", "chosen": "sunny .", "rejected": "no"}),
        (formats.prompts, {"prompt": "weather ?"}),
    ],
)
def test_tools_are_read_in_every_format(normalize, row, column):
    assert normalize(row | column) == normalize(row) | {"tools": [TOOL]}
    assert normalize(row | {"tools": [], "functions": None}) == normalize(row)


@pytest.mark.parametrize("field", ["reasoning_content", "thinking", "reasoning"])
def test_thinking_in_a_field_of_its_own_stays_with_its_answer(field):
    thought = {**ANSWER, "reasoning_content": "hm"}
    assert messages(ASK, {**ANSWER, field: "hm"}) == [ASK, thought]
    assert messages(ASK, {**ANSWER, field: ""}) == [ASK, ANSWER]
    pair = formats.preference({"prompt": [ASK], "chosen": [{**ANSWER, field: "hm"}], "rejected": [ANSWER]})
    assert pair["completions"] == [thought, "sunny ."]


@pytest.mark.parametrize("field", ["weight", "train", "training", "loss"])
def test_a_weight_decides_whether_a_turn_is_a_target(field):
    assert messages(ASK, {**ANSWER, field: 0}, ASK, {**ANSWER, field: 1}) == [ASK, {**ANSWER, "weight": 0}, ASK, ANSWER]
    assert messages({**ASK, field: 0}, {**ANSWER, field: True}) == [ASK, ANSWER]
    turns = [{"from": "human", "value": "weather ?"}, {"from": "gpt", "value": "sunny .", field: False}]
    assert formats.chat({"conversations": turns})["messages"] == [ASK, {**ANSWER, "weight": 0}]
    assert formats.prompts({"messages": [ASK, {**ANSWER, field: 0}, ASK, ANSWER]})["prompt"] == [ASK, ANSWER, ASK]


def test_only_the_completion_of_a_prompt_is_a_target():
    record = formats.chat({"prompt": [ASK, ANSWER, ASK], "completion": [CALLING, RESULT, ANSWER]})
    assert record["messages"] == [ASK, {**ANSWER, "weight": 0}, ASK, CALLING, RESULT, ANSWER]


@pytest.mark.parametrize("history", [HISTORY, OLD])
def test_of_a_history_before_a_prompt_and_its_completion_nothing_is_a_target(history):
    asked = [OLD[0], {**OLD[1], "weight": 0}]
    record = formats.chat({"prompt": "weather ?", "completion": "sunny .", "history": history, "system": "Be brief."})
    assert record["messages"] == [{"role": "system", "content": "Be brief."}, *asked, ASK, ANSWER]
    assert messages(ASK, ANSWER, history=history) == [*OLD, ASK, ANSWER]


@pytest.mark.parametrize("column", ["system", "system_prompt"])
@pytest.mark.parametrize(
    ("normalize", "row", "field"),
    [
        (formats.chat, {"messages": [ASK, ANSWER]}, "messages"),
        (
            formats.chat,
            {"conversations": [{"from": "human", "value": "weather ?"}, {"from": "gpt", "value": "sunny ."}]},
            "messages",
        ),
        (formats.chat, {"prompt": "weather ?", "completion": "sunny ."}, "messages"),
        (formats.chat, {"instruction": "weather ?", "output": "sunny ."}, "messages"),
        (formats.chat, {"instruction": "weather ?", "response": "sunny ."}, "messages"),
        (formats.preference, {"prompt": "weather ?", "chosen": "sunny .", "rejected": "no"}, "prompt"),
        (formats.preference, {"chosen": [ASK, ANSWER], "rejected": [ASK, CALLING]}, "prompt"),
        (formats.preference, {"prompt": "weather ?", "completions": ["a", "b"], "ranks": [0, 1]}, "prompt"),
        (formats.prompts, {"prompt": "weather ?"}, "prompt"),
        (formats.prompts, {"instruction": "weather ?"}, "prompt"),
    ],
)
def test_system_and_history_come_before_a_dialogue_of_any_shape(normalize, row, field, column):
    plain = normalize(row)
    assert normalize(row | {column: "", "history": []}) == plain
    assert normalize(row | {column: "Answer in French."}) == plain | {field: [SYSTEM, *plain[field]]}
    for history in (HISTORY, OLD):
        made = normalize(row | {column: "Answer in French.", "history": history})
        old = [OLD[0], OLD[1] | {"weight": 0}] if "completion" in row else OLD
        assert made == plain | {field: [SYSTEM, *old, *plain[field]]}


def test_a_system_message_stays_first_and_one_said_twice_is_one():
    assert messages(SYSTEM, ASK, ANSWER, history=HISTORY) == [SYSTEM, *OLD, ASK, ANSWER]
    assert messages(SYSTEM, ASK, ANSWER, system="Answer in French.") == [SYSTEM, ASK, ANSWER]


def test_pairs_share_a_prompt_with_calls_of_tools():
    shared = [ASK, {**CALLING, "weight": 0}, RESULT]
    record = formats.preference({"chosen": [*shared, ANSWER], "rejected": [*shared, CALLING], "tools": [TOOL]})
    assert record["prompt"] == [ASK, CALLING, RESULT] and record["completions"] == ["sunny .", CALLING]
    apart = formats.preference({"prompt": shared, "chosen": [*shared, ANSWER], "rejected": [CALLING], "tools": [TOOL]})
    assert apart == record
    assert formats.prompts({"messages": [*shared, ANSWER]})["prompt"] == [ASK, CALLING, RESULT]


@pytest.mark.parametrize(
    ("said", "columns", "complaint"),
    [
        ([SYSTEM, ASK, ANSWER], {"system": "Be brief."}, "one system text, got different ones in system and a system"),
        ([ASK, ANSWER], {"system": "a", "system_prompt": "b"}, "different ones in system and system_prompt"),
        ([ASK, ANSWER], {"system": ["a"]}, 'a string "system", got list'),
        ([ASK, ANSWER], {"system": "\ud800"}, "surrogate"),
        ([ASK, ANSWER], {"history": "before"}, r'"history" as a list of \[question, answer\]'),
        ([ASK, ANSWER], {"history": [["a", "b"], ["c"]]}, r"history\[1\] as \[question, answer\]"),
        ([ASK, ANSWER], {"history": [ASK]}, '"history" by user and assistant in turns'),
        ([ASK, ANSWER], {"tools": "weather"}, "tools as JSON, got str 'weather'"),
        ([ASK, ANSWER], {"tools": [5]}, '"tools" as a list of objects'),
        ([ASK, ANSWER], {"tools": [TOOL], "functions": [TOOL]}, '"tools" or "functions", got both'),
        ([ASK, {**ANSWER, "weight": 0.5}], {}, r"messages\[1\].weight as 0 or 1.*got float 0.5"),
        ([ASK, {**ANSWER, "loss": "no"}], {}, r"messages\[1\].loss as 0 or 1"),
        ([ASK, {**ANSWER, "weight": 1, "train": False}], {}, r"one weight for messages\[1\]"),
        ([ASK, {**ANSWER, "audio": {"id": 1}}], {}, r"without messages\[1\].audio"),
        ([{**ASK, "images": ["a.png"]}, ANSWER], {}, r"without messages\[0\].images"),
        ([ASK, {"role": "assistant", "content": None, "refusal": "no"}], {}, r"without messages\[1\].refusal"),
        ([ASK, {"role": "assistant", "content": "", "toolCalls": [CALL]}], {}, "an empty one and 'toolCalls'"),
        ([ASK, {**ANSWER, "tool_calls": "weather"}], {}, r"a list messages\[1\].tool_calls"),
        ([ASK, {**ANSWER, "tool_calls": [{"name": 5}]}], {}, r'messages\[1\].tool_calls\[0\] as {"name", "arguments"}'),
        ([ASK, {**ANSWER, "function_call": {"name": "f", "arguments": "{"}}], {}, "function_call.arguments as JSON"),
        ([ASK, {**ANSWER, "function_call": {"name": "f", "arguments": "[1]"}}], {}, "arguments as an object"),
        ([ASK, {**ANSWER, "function_call": {"name": "f", "arguments": '{"a": 1, "a": 2}'}}], {}, "two fields 'a'"),
        ([ASK, {**ANSWER, "function_call": {"name": "f", "arguments": {"a": ["\ud800"]}}}], {}, "half a surrogate"),
        ([ASK, {**ANSWER, "function_call": {"name": "f\ud800"}}], {}, r"messages\[1\].function_call.*half a surrogate"),
        (
            [ASK, ANSWER],
            {"tools": '[{"name": "a", "name": "b"}]'},
            "tools as JSON, got an object with two fields 'name'",
        ),
        ([ASK, ANSWER], {"tools": [{"name": "a", "description": "\ud800"}]}, '"tools" as Unicode text'),
        ([ASK, {**CALLING, "function_call": {"name": "f"}}], {}, "tool_calls or .*function_call, got both"),
        ([{**ASK, "tool_calls": [CALL]}, ANSWER], {}, r"only in the assistant's messages, not in messages\[0\]"),
        ([ASK, {**ANSWER, "reasoning": "a", "thinking": "b"}], {}, r"in messages\[1\], got different ones"),
        ([ASK, {**ANSWER, "reasoning": 5}], {}, r"a string messages\[1\].reasoning"),
    ],
)
def test_ambiguous_fields_are_refused_by_name(said, columns, complaint):
    with pytest.raises(formats.FormatError, match=complaint):
        messages(*said, **columns)


@pytest.mark.parametrize(
    ("marker", "column"), [("<image>", "images"), ("<|audio|>", "audio"), ("<video_1>", "videos"), ("<image>", "image")]
)
@pytest.mark.parametrize(
    ("normalize", "row"),
    [
        (formats.chat, {"messages": [ASK, ANSWER]}),
        (formats.chat, {"instruction": "weather ?", "output": "sunny ."}),
        (formats.preference, {"prompt": "weather ?", "chosen": "sunny .", "rejected": "no"}),
        (formats.prompts, {"prompt": "weather ?"}),
    ],
)
def test_a_column_that_a_text_refers_to_is_refused_and_any_other_is_ignored(normalize, row, marker, column):
    pointing = json.loads(json.dumps(row).replace("weather ?", f"{marker} weather ?"))
    assert normalize(row | {column: "a.png"}) == normalize(row)
    for value in (None, "", []):
        assert normalize(pointing | {column: value}) == normalize(pointing)
    for value in ("a.png", [{"bytes": "x"}], Unread("a column of binary")):
        with pytest.raises(formats.FormatError, match=rf'without "{column}", which {re.escape(marker)} refers to'):
            normalize(pointing | {column: value})


def test_fields_of_messages_that_nothing_reads_are_known_by_name():
    told = {**ANSWER, "timestamp": 5, "annotations": [], "name": "bob", "id": "x", "weight": 1}
    assert messages(ASK, told) == [ASK, ANSWER]
    assert unread({"messages": [ASK, told], "source": "web"}) == {"timestamp"}
    assert unread({"conversations": [{"from": "gpt", "value": "x", "markdown": None, "mood": "merry"}]}) == {"mood"}
    assert unread(["x"]) == unread({"messages": "x"}) == set()
