"""Labeled answers of every accepted shape, and comparisons read as labeled answers."""

import pytest

from components.data.records import formats
from components.data.records.errors import FormatError
from components.data.records.labels import chat, unpaired

ASK = [{"role": "user", "content": "Hi"}]
ANSWER = {"role": "assistant", "content": "Yes"}
OTHER = {"role": "assistant", "content": "No"}
SYSTEM = {"role": "system", "content": "Be brief"}
CALL = {"type": "function", "function": {"name": "look", "arguments": {}}}
GOOD = {"prompt": ASK, "completions": ["Yes"], "labels": [True]}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Yes", "label": True},
        {"prompt": ASK, "completion": [ANSWER], "label": True, "id": 3},
        {"messages": [*ASK, ANSWER], "label": True},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}], "kto_tag": True},
        {"instruction": "Hi", "input": "", "output": "Yes", "kto_tag": True},
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "completion": "Yes", "label": True},
        {"prompt": "Hi", "completion": "Yes", "thumbs": "up", "label": None},
        {"prompt": "Hi", "completion": "Yes", "vote": "👍"},
        {"prompt": "Hi", "completion": "Yes", "vote": " Thumbs_Up", "label": True},
    ],
)
def test_a_labeled_answer_of_any_accepted_shape_becomes_one(row):
    assert unpaired(row) == GOOD


@pytest.mark.parametrize("vote", [False, "down", "thumbs_down", "👎"])
def test_a_vote_against_an_answer_makes_it_undesirable(vote):
    assert unpaired({"prompt": "Hi", "completion": "Yes", "label": vote}) == {**GOOD, "labels": [False]}


def test_a_label_is_that_of_the_last_answer_which_follows_all_before_it():
    dialogue = [SYSTEM, *ASK, OTHER, {"role": "user", "content": "So?"}, ANSWER]
    found = unpaired({"messages": dialogue, "label": False})
    assert found == {"prompt": dialogue[:-1], "completions": ["Yes"], "labels": [False]}
    assert unpaired({"prompt": "Hi", "completion": "Yes", "label": True, "system": "Be brief"}) == {
        **GOOD,
        "prompt": [SYSTEM, *ASK],
    }


def test_an_answer_with_tool_calls_stays_a_message_and_tools_are_kept():
    calling = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    tools = [{"type": "function", "function": {"name": "look"}}]
    found = unpaired({"messages": [*ASK, calling], "label": True, "tools": tools})
    assert found == {"prompt": ASK, "completions": [calling], "labels": [True], "tools": tools}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
        {"prompt": "Hi", "completions": ["Yes", "No"], "ranks": [0, 1]},
        {"input": {"messages": ASK}, "preferred_output": [ANSWER], "non_preferred_output": [OTHER]},
        {"history": "Hi", "human_ref_A": "Yes", "human_ref_B": "No", "labels": 1},
    ],
)
def test_a_comparison_is_one_desirable_and_one_undesirable_answer(row):
    assert unpaired(row) == {"prompt": ASK, "completions": ["Yes", "No"], "labels": [True, False]}


@pytest.mark.parametrize(
    ("ranks", "labels"),
    [
        ([0, 1, 2, 3], [True, True, False, False]),
        ([2, 0, 1], [False, True, None]),  # better than one, worse than one
        ([0, 0, 1], [True, True, False]),
        ([0, 1, 1], [True, False, False]),
        ([0, 1, 1, 2], [True, None, None, False]),
        ([1, 1], [None, None]),
    ],
)
def test_an_answer_of_a_ranking_is_desirable_if_it_wins_more_comparisons_than_it_loses(ranks, labels):
    answers = ["a", "b", "c", "d"][: len(ranks)]
    assert unpaired({"prompt": "Hi", "completions": answers, "ranks": ranks})["labels"] == labels


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": "Hi", "completion": "Yes"},
            r"\"label\" \(true or false\), or a comparison.*'prompt', 'completion'",
        ),
        ({"prompt": "Hi", "completion": "Yes", "label": None}, "true or false"),
        ({}, "got no fields"),
        (["Hi"], "a labeled answer as a JSON object, got list"),
        ({"prompt": "Hi", "completion": "Yes", "label": 1}, '"label" as true or false, or a vote .*got int 1'),
        ({"prompt": "Hi", "completion": "Yes", "label": "good"}, "got str 'good'"),
        ({"prompt": "Hi", "completion": "Yes", "label": True, "thumbs": "down"}, "one label.*'label', 'thumbs'"),
        ({"prompt": "Hi", "chosen": "Yes", "rejected": "No", "label": True}, "both 'label' and 'chosen', 'rejected'"),
        ({"prompt": "Hi", "chosen": "Yes"}, '"chosen" and "rejected"'),
        (
            {"messages": [*ASK, ANSWER, *ASK], "label": True},
            "ends with the labeled answer, got one that ends with user",
        ),
        ({"prompt": "Hi", "label": True}, '"messages", or "conversations"'),
        ({"prompt": "", "completion": "Yes", "label": True}, "non-empty"),
    ],
)
def test_errors_say_what_is_wrong_with_a_record(row, said):
    with pytest.raises(FormatError, match=said):
        unpaired(row)


@pytest.mark.parametrize("label", [False, "down", "👎", " Thumbs_Down ", "False"])
@pytest.mark.parametrize("name", ["label", "kto_tag", "thumbs", "vote"])
def test_an_answer_that_is_labeled_as_bad_is_no_demonstration(name, label):
    for row in (
        {"prompt": "Hi", "completion": "No", name: label},
        {"messages": [*ASK, ANSWER], name: label},
        {"instruction": "Hi", "output": "No", name: label},
        {"question": "Hi", "answer": "No", name: label},
    ):
        with pytest.raises(
            FormatError, match=f"a demonstration, got an answer labeled undesirable by '{name}'.*stage=kto"
        ):
            chat(row)


@pytest.mark.parametrize("label", [True, "up", "True", None, 0, 3, "negative", [False]])
def test_a_good_answer_and_what_is_no_label_are_read_as_before(label):
    row = {"prompt": "Hi", "completion": "Yes"}
    assert chat(row | {"label": label}) == formats.chat(row)
    assert chat.__name__ == formats.chat.__name__ == "chat"  # the name of the format
    assert chat({"prompt": "Hi", "chosen": "Yes", "rejected": "No"}) == formats.chat(row) | {"preferred": True}


@pytest.mark.parametrize(("label", "desirable"), [("true", True), ("False", False), ("👍", True)])
def test_a_table_of_text_can_have_labels(label, desirable):
    assert unpaired({"prompt": "Hi", "completion": "Yes", "label": label})["labels"] == [desirable]
