import pytest

from components.data.records import formats

ASK = [{"role": "user", "content": "Hi"}]
ANSWER = {"role": "assistant", "content": "Yes"}
OTHER = {"role": "assistant", "content": "No"}
SYSTEM = {"role": "system", "content": "Be brief"}
RANKING = {"prompt": ASK, "completions": ["Yes", "No"], "ranks": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [SYSTEM, *ASK, ANSWER], "id": 7}, [SYSTEM, *ASK, ANSWER]),
        ({"messages": [{**ASK[0], "name": "x"}, ANSWER]}, [*ASK, ANSWER]),
        ({"prompt": "Hi", "completion": "Yes"}, [*ASK, ANSWER]),
        ({"prompt": ASK, "completion": [ANSWER], "messages": None}, [*ASK, ANSWER]),
        ({"instruction": "Hi", "output": "Yes"}, [*ASK, ANSWER]),
        (
            {"instruction": "Add", "input": "1 2", "output": "3"},
            [{"role": "user", "content": "Add\n\n1 2"}, {"role": "assistant", "content": "3"}],
        ),
        ({"instruction": "Hi", "input": "", "output": "Yes"}, [*ASK, ANSWER]),
    ],
)
def test_a_demonstration_of_any_accepted_shape_becomes_messages(row, messages):
    assert formats.chat(row) == {"messages": messages}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
        {"prompt": ASK, "chosen": [ANSWER], "rejected": [OTHER]},
        {"prompt": "Hi", "chosen": [*ASK, ANSWER], "rejected": [*ASK, OTHER]},
        {"chosen": [*ASK, ANSWER], "rejected": [*ASK, OTHER]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "Yes", "rejected": "No"},
        {"prompt": "Hi", "completions": ["Yes", "No"], "ranks": [0, 1]},
    ],
)
def test_a_comparison_of_any_accepted_shape_becomes_a_ranking(row):
    assert formats.preference(row) == RANKING


@pytest.mark.parametrize(
    ("fields", "category"),
    [
        ({"category": "maths", "source": "web"}, "maths"),
        ({"category": None, "source": "web"}, "web"),
        ({"category": 3}, None),
        ({"source": ["web"]}, None),
    ],
)
def test_a_comparison_keeps_the_name_of_its_category_or_source(fields, category):
    kept = {} if category is None else {"category": category}
    assert formats.preference({"prompt": "Hi", "chosen": "Yes", "rejected": "No", **fields}) == RANKING | kept
    ranking = {"prompt": "Hi", "completions": ["Yes", "No"], "ranks": [0, 1], **fields}
    assert formats.preference(ranking) == RANKING | kept


def test_a_transcript_is_cut_into_its_turns_and_shares_all_but_the_last():
    shared = "\n\nHuman: One\nline two\n\nAssistant: A: fine\n\nHuman: Then?\n\nAssistant:"
    record = formats.preference({"chosen": f"{shared} Good", "rejected": f"{shared} Bad"})
    assert [message["role"] for message in record["prompt"]] == ["user", "assistant", "user"]
    assert [message["content"] for message in record["prompt"]] == ["One\nline two", "A: fine", "Then?"]
    assert record["completions"] == ["Good", "Bad"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "reference": None},
        {"prompt": ASK},
        {"messages": ASK},
        {"prompt": "Hi", "completion": "Yes", "label": False},
        {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
    ],
)
def test_a_prompt_is_found_in_records_of_every_format(row):
    assert formats.prompts(row) == {"prompt": ASK, "reference": None}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": ANSWER["content"]},
        {"prompt": "Hi", "completion": [ANSWER]},
        {"messages": [*ASK, ANSWER]},
        {"instruction": "Hi", "output": ANSWER["content"]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": ANSWER["content"]}]},
    ],
)
def test_the_answer_of_a_demonstration_is_the_reference_of_its_prompt(row):
    assert formats.prompts(row) == {"prompt": ASK, "reference": ANSWER["content"]}


def test_a_prompt_can_have_a_reference():
    assert formats.prompts({"prompt": "Hi", "reference": "Yes"})["reference"] == "Yes"
    assert formats.prompts({"prompt": "Hi", "completion": "No", "reference": "Yes"})["reference"] == "Yes"


@pytest.mark.parametrize(
    ("normalize", "row", "said"),
    [
        (formats.text, {"text": 5}, 'a string "text", got int 5'),
        (formats.text, {"txt": "x"}, "got fields 'txt'"),
        (formats.text, {"text": ""}, "non-empty"),
        (formats.text, ["x"], "JSON object, got list"),
        (formats.text, {"text": "\ud800"}, "surrogate"),
        (formats.chat, {"messages": ASK}, "at least one message of the assistant"),
        (formats.chat, {"messages": [ANSWER, *ASK]}, "in turns.*got assistant, user"),
        (formats.chat, {"messages": [*ASK, SYSTEM, ANSWER]}, "in turns"),
        (formats.chat, {"messages": [{"role": "bot", "content": "x"}]}, r"\[0\].role as one of.*'bot'"),
        (formats.chat, {"messages": [{"role": "user", "content": None}]}, r"\[0\].content, got None"),
        (formats.chat, {"messages": []}, "non-empty list of messages"),
        (formats.chat, {"instruction": "x", "completion": "y"}, '"instruction" and "output", or .*, got fields'),
        (formats.chat, {}, "got no fields"),
        (formats.preference, {"chosen": "x", "rejected": "y"}, "begin with"),
        (formats.preference, {"prompt": "x", "chosen": "y"}, '"chosen" and "rejected"'),
        (formats.preference, {"prompt": "Hi", "chosen": [*ASK, ANSWER, *ASK], "rejected": "x"}, "3 messages"),
        (
            formats.preference,
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
            "share all but the last turn",
        ),
        (formats.preference, {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"}, "a question and a final answer"),
        (formats.preference, {"prompt": "x", "completions": ["a", "b"], "ranks": [1]}, "2 numbers for 2"),
        (formats.preference, {"prompt": "x", "completions": ["a", "b"], "ranks": [1, float("nan")]}, "nan"),
        (formats.preference, {"prompt": "x", "completions": ["a", "b"], "ranks": [1, True]}, "True"),
        (formats.preference, {"prompt": "x", "completions": ["a", "b"], "ranks": [1, 10**400]}, "2 numbers for 2"),
        (formats.preference, {"prompt": "x", "completions": ["a"], "ranks": [1]}, "at least 2"),
        (formats.prompts, {"prompt": [*ASK, ANSWER]}, "ends with a question"),
        (formats.prompts, {"prompt": ""}, "non-empty"),
        (formats.prompts, {"prompt": "x", "reference": 4}, 'a string "reference", got int 4'),
        (formats.prompts, {"ask": "x"}, "got fields 'ask'"),
    ],
)
def test_errors_say_what_is_wrong_with_a_record(normalize, row, said):
    with pytest.raises(formats.FormatError, match=said):
        normalize(row)
