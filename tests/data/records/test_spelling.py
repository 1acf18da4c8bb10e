"""Records in the wild: messages as other tools spell them, read if they are unambiguous, otherwise refused."""

import json

import pytest

from components.data.records import formats
from components.data.records.errors import FormatError

SYSTEM = {"role": "system", "content": "Be brief"}
ASK, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}
DIALOGUE = [ASK, ANSWER]
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]
BOTH = {"chosen": "a", "rejected": "b", "completions": ["a", "b"], "ranks": [0, 1]}
TEXT = {"type": "text", "text": "Hi", "image": None}


def turn(speaker: str, value) -> dict:
    return {"from": speaker, "value": value}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [{"role": "User", "content": "Hi"}, {"role": "ASSISTANT", "content": "Yes"}]}, DIALOGUE),
        ({"messages": [{"role": "human", "content": "Hi"}, {"role": "model", "content": "Yes"}]}, DIALOGUE),
        ({"messages": [SYSTEM | {"role": "developer"}, *DIALOGUE]}, [SYSTEM, *DIALOGUE]),
        ({"messages": [ASK | {"content": [TEXT]}, ANSWER]}, DIALOGUE),
        ({"messages": [ASK | {"content": [{**TEXT, "text": "H"}, {**TEXT, "text": "i"}]}, ANSWER]}, DIALOGUE),
        ({"messages": json.dumps(DIALOGUE)}, DIALOGUE),
        ({"messages": [json.dumps(message) for message in DIALOGUE]}, DIALOGUE),
        ({"messages": SHARED}, DIALOGUE),
        ({"conversations": [turn("Human", "Hi"), turn("model", "Yes")]}, DIALOGUE),
        (
            {"conversations": [turn("developer", "Be brief"), turn("human", "Hi"), turn("gpt", "Yes")]},
            [SYSTEM, *DIALOGUE],
        ),
        ({"conversations": DIALOGUE}, DIALOGUE),
        ({"conversations": json.dumps(SHARED)}, DIALOGUE),
        ({"conversation": [SYSTEM | {"role": "System"}, *DIALOGUE]}, [SYSTEM, *DIALOGUE]),
        ({"prompt": [ASK], "completion": ANSWER}, DIALOGUE),
        ({"prompt": ASK, "completion": ANSWER}, DIALOGUE),
        ({"messages": DIALOGUE, "prompt": "Hi", "completion": "Yes"}, DIALOGUE),
        ({"messages": DIALOGUE, "prompt": "Hi", "prompt_id": 3}, DIALOGUE),
        ({"messages": [ASK, ANSWER | {"content": "a\x00b\u2028c"}]}, [ASK, ANSWER | {"content": "a\x00b\u2028c"}]),
    ],
)
def test_messages_are_read_as_other_tools_spell_them(row, messages):
    assert formats.chat(row) == {"messages": messages}


def test_comparisons_and_prompts_are_spelled_as_freely():
    pair = {"chosen": ANSWER, "rejected": [ANSWER | {"role": "Model", "content": [TEXT | {"text": "No"}]}]}
    ranking = {"prompt": [ASK], "completions": ["Yes", "No"], "ranks": [0.0, 1.0]}
    assert formats.preference({"prompt": ASK, **pair}) == ranking
    whole = {name: json.dumps([ASK, {"role": "assistant", "content": said}]) for name, said in zip(pair, ["Yes", "No"])}
    assert formats.preference(whole) == ranking
    asked = formats.prompts({"prompt": ASK, "reference": "Yes"})
    assert asked == formats.prompts({"conversation": DIALOGUE})


@pytest.mark.parametrize(
    ("normalize", "row", "said"),
    [
        (
            formats.chat,
            {"messages": DIALOGUE, "prompt": "other", "completion": "else"},
            "one demon.*messages and prompt",
        ),
        (formats.chat, {"conversations": DIALOGUE, "messages": [ASK, SYSTEM]}, "in turns"),
        (formats.chat, {"messages": "Hi"}, "non-empty list of messages \"messages\", got str 'Hi'"),
        (formats.chat, {"messages": "[{'role': 'user'}]"}, "messages as JSON, got .*double quotes at column 3"),
        (
            formats.chat,
            {"messages": '[{"role": "user", "content": "a", "content": "b"}]'},
            "messages as JSON, got an object with two fields 'content'",
        ),
        (formats.chat, {"messages": "[" * 10**5}, "messages as JSON, got brackets within brackets"),
        (formats.chat, {"messages": '[{"role": 1' + "0" * 5000 + "}]"}, "messages as JSON, got a number with too many"),
        (
            formats.chat,
            {"messages": [ASK | {"content": [{"type": "image_url", "image_url": "x"}]}, ANSWER]},
            r"text parts in messages\[0\]\.content, got one of type 'image_url'",
        ),
        (formats.chat, {"messages": [ASK | {"content": ["Hi"]}, ANSWER]}, r"text parts in messages\[0\]"),
        (formats.chat, {"messages": [ASK | {"content": []}, ANSWER]}, r"a string messages\[0\]\.content, got"),
        (formats.chat, {"messages": [ASK | {"value": "else"}, ANSWER]}, r"messages\[0\].* content or value"),
        (formats.chat, {"messages": [turn("human", "Hi") | {"role": "assistant"}]}, r"messages\[0\].* role or from"),
        (
            formats.chat,
            {"conversations": [turn("human", "Hi"), turn("gpt", None)]},
            r"a string conversations\[1\]\.value",
        ),
        (formats.chat, {"conversations": [turn("bard", "x")]}, r"conversations\[0\]\.from as one of human, .*'bard'"),
        (
            formats.chat,
            {"messages": [ASK | {"content": ""}, ANSWER | {"content": " "}]},
            "a dialogue with some text",
        ),
        (formats.chat, {"instruction": "3 + 3", "output": 6}, 'a string "output", got int 6'),
        (formats.chat, {"messages": None, "id": 3}, "got fields 'id'; \"messages\" is null"),
        (
            formats.preference,
            {"prompt": "q", "chosen": "a", "rejected": "b", "completions": ["a", "b"], "ranks": [0, 1]},
            '"completions" and "ranks".*got both',
        ),
        (formats.prompts, {"prompt": [ASK | {"content": ""}]}, "question that is not empty"),
    ],
)
def test_ambiguous_records_are_refused_with_the_cause(normalize, row, said):
    with pytest.raises(FormatError, match=said):
        normalize(row)
