"""Records as people publish them, each for every stage that it makes sense for, without any configuration."""

import json

import pytest

from components.data.records import formats
from components.data.records.errors import FormatError


def turns(*said: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


def answer(text: str, **fields) -> dict:
    return {"role": "assistant", "content": text, **fields}


def system(text: str) -> dict:
    return {"role": "system", "content": text}


BRIEF = system("Be brief.")
WEATHER = {"name": "weather", "description": "Weather of a city", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": WEATHER}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
CALLING = answer("", tool_calls=[CALL])
HH = "\n\nHuman: How do I boil an egg?\n\nAssistant: How soft?\n\nHuman: Soft.\n\nAssistant:"
EGG = turns("How do I boil an egg?", "How soft?", "Soft.")

DEMONSTRATIONS = {
    "Alpaca": (
        {"instruction": "Translate.", "input": "Katze", "output": "cat", "text": "Below is an instruction …"},
        turns("Translate.\n\nKatze", "cat"),
    ),
    "Alpaca with system and history": (
        {"instruction": "And?", "input": "", "output": "So.", "system": "Be brief.", "history": [["Why?", "Since."]]},
        [BRIEF, *turns("Why?", "Since.", "And?", "So.")],
    ),
    "ShareGPT": (
        {"id": "a_0", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]},
        turns("Hi", "Yes"),
    ),
    "ShareGPT with a system turn": (
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Yes"},
            ]
        },
        [BRIEF, *turns("Hi", "Yes")],
    ),
    "turns of OpenAI's roles with from and value": (
        {"messages": json.dumps([{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Yes"}])},
        turns("Hi", "Yes"),
    ),
    "OpenAI messages": ({"messages": [BRIEF, *turns("Hi", "Yes")]}, [BRIEF, *turns("Hi", "Yes")]),
    "OpenAI fine-tuning with weights": (
        {"messages": [*turns("Hi"), answer("No", weight=0), *turns("Sure?"), answer("Yes", weight=1)]},
        [*turns("Hi"), answer("No", weight=0), *turns("Sure?", "Yes")],
    ),
    "OpenAI messages with parts": (
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}]
            + [answer("Yes")]
        },
        turns("Hi", "Yes"),
    ),
    "prompt and completion": ({"prompt": "Hi", "completion": " Yes"}, turns("Hi", " Yes")),
    "prompt and completion as messages": ({"prompt": turns("Hi"), "completion": [answer("Yes")]}, turns("Hi", "Yes")),
    "a transcript": ({"text": f"{HH} Four minutes."}, [*EGG, answer("Four minutes.")]),
    "a transcript under its own name": (
        {"transcript": f"{HH} Four minutes.\n\n", "rating": 4.0},
        [*EGG, answer("Four minutes.")],
    ),
    "prompt and response": ({"prompt": "Hi", "response": "Yes"}, turns("Hi", "Yes")),
    "GSM8K": ({"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"}, turns("1 + 1?", "1 + 1 = 2\n#### 2")),
    "OpenOrca": (
        {"id": "cot.1", "system_prompt": "Be brief.", "question": "Hi", "response": "Yes"},
        [BRIEF, *turns("Hi", "Yes")],
    ),
    "MetaMath": ({"query": "1 + 1?", "response": "2", "type": "GSM"}, turns("1 + 1?", "2")),
    "input and output": ({"input": "Hi", "output": "Yes"}, turns("Hi", "Yes")),
    "messages next to what they were made from": (
        {"messages": turns("1 + 1?", "2"), "question": "1 + 1?", "answer": "2", "solution": "…"},
        turns("1 + 1?", "2"),
    ),
}
COMPARISONS = {
    "prompt, chosen and rejected": ({"prompt": "Hi", "chosen": "Yes", "rejected": "No"}, turns("Hi"), ["Yes", "No"]),
    "HH": ({"chosen": f"{HH} Four minutes.", "rejected": f"{HH} No."}, EGG, ["Four minutes.", "No."]),
    "HH without the line ends at its start": (
        {"chosen": f"{HH} Four minutes.".lstrip(), "rejected": f"{HH} No.".lstrip()},
        EGG,
        ["Four minutes.", "No."],
    ),
    "UltraFeedback, binarized": (
        {
            "prompt": "Hi",
            "prompt_id": "5f",
            "chosen": turns("Hi", "Yes"),
            "rejected": turns("Hi", "No"),
            "messages": turns("Hi", "Yes"),
            "score_chosen": 8.0,
            "score_rejected": 3.5,
        },
        turns("Hi"),
        ["Yes", "No"],
    ),
    "UltraFeedback": (
        {
            "source": "evol_instruct",
            "instruction": "Hi",
            "models": ["a", "b"],
            "completions": [
                {"model": "a", "response": "Yes", "overall_score": 8, "custom_system_prompt": "Help."},
                {"model": "b", "response": "No", "overall_score": 3.5, "custom_system_prompt": "Help."},
            ],
        },
        turns("Hi"),
        ["Yes", "No"],
    ),
    "Alpaca": (
        {"instruction": "Translate.", "input": "Katze", "chosen": "cat", "rejected": "dog"},
        turns("Translate.\n\nKatze"),
        ["cat", "dog"],
    ),
    "ShareGPT": (
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Yes"},
            "rejected": {"from": "gpt", "value": "No"},
        },
        turns("Hi"),
        ["Yes", "No"],
    ),
    "Orca": (
        {"system": "Be brief.", "question": "Hi", "chosen": "Yes", "rejected": "No"},
        [BRIEF, *turns("Hi")],
        ["Yes", "No"],
    ),
    "OpenAI": (
        {
            "input": {"messages": turns("Hi"), "tools": [], "parallel_tool_calls": True},
            "preferred_output": [answer("Yes")],
            "non_preferred_output": [answer("No")],
        },
        turns("Hi"),
        ["Yes", "No"],
    ),
    "dialogues next to the question": (
        {"question": "Hi", "chosen": [BRIEF, *turns("Hi", "Yes")], "rejected": [BRIEF, *turns("Hi", "No")]},
        [BRIEF, *turns("Hi")],
        ["Yes", "No"],
    ),
}


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_a_demonstration_is_learned_and_asked(name):
    row, messages = DEMONSTRATIONS[name]
    made = formats.chat(row)
    assert made == {"messages": messages}
    asked = [{"role": message["role"], "content": message["content"]} for message in messages[:-1]]
    assert formats.prompts(row)["prompt"] == asked


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_comparison_is_compared_asked_and_its_best_answer_learned(name):
    row, prompt, answers = COMPARISONS[name]
    made = formats.preference(row)
    ranks = [-8.0, -3.5] if name == "UltraFeedback" else [0.0, 1.0]
    assert {field: made[field] for field in ("prompt", "completions", "ranks")} == {
        "prompt": prompt,
        "completions": answers,
        "ranks": ranks,
    }
    assert formats.prompts(row)["prompt"] == prompt
    learned = formats.chat(row)
    earlier = [message | {"weight": 0} if message["role"] == "assistant" else message for message in prompt]
    assert learned["messages"] == [*earlier, answer(answers[0])]
    assert learned.get("preferred", False) == ("messages" not in row)


def test_of_a_ranking_the_first_of_the_best_answers_is_learned():
    row = {"prompt": "Hi", "completions": ["a", "b", "c"], "ranks": [2, 1, 1], "tools": [WEATHER]}
    assert formats.chat(row) == {"messages": turns("Hi", "b"), "tools": [TOOL], "preferred": True}


AGENTS = {
    "OpenAI": (
        {
            "messages": [
                *turns("Weather in Oslo?"),
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "c1",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "rain"}]},
                answer("It rains."),
            ],
            "tools": [TOOL],
            "parallel_tool_calls": False,
        },
        "c1",
    ),
    "OpenAI, before tools": (
        {
            "messages": [
                *turns("Weather in Oslo?"),
                {
                    "role": "assistant",
                    "content": None,
                    "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'},
                },
                {"role": "function", "name": "weather", "content": "rain"},
                answer("It rains."),
            ],
            "functions": [WEATHER],
        },
        None,
    ),
    "ShareGPT": (
        {
            "conversations": [
                {"from": "human", "value": "Weather in Oslo?"},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
                {"from": "observation", "value": "rain"},
                {"from": "gpt", "value": "It rains."},
            ],
            "tools": json.dumps([WEATHER]),
        },
        None,
    ),
    "roles for calls and results": (
        {
            "messages": [
                *turns("Weather in Oslo?"),
                {"role": "tool_call", "content": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
                {"role": "tool_response", "content": "rain"},
                answer("It rains."),
            ],
            "tools": json.dumps([TOOL]),
        },
        None,
    ),
    "calls as JSON in a string": (
        {
            "messages": [
                *turns("Weather in Oslo?"),
                {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])},
                {"role": "tool", "content": "rain"},
                answer("It rains."),
            ],
            "tools": json.dumps([WEATHER]),
        },
        None,
    ),
}


@pytest.mark.parametrize("name", AGENTS)
def test_a_dialogue_with_tools_is_the_same_however_it_is_written(name):
    row, call_id = AGENTS[name]
    made = formats.chat(row)
    asked, calling, result, said = made["messages"]
    assert made["tools"] == [TOOL]
    assert (asked, said) == (*turns("Weather in Oslo?"), answer("It rains."))
    assert calling == answer("", tool_calls=[CALL | ({"id": call_id} if call_id else {})])
    assert (result["role"], result["content"], result.get("tool_call_id")) == ("tool", "rain", call_id)
    assert formats.prompts(row) == {"prompt": made["messages"][:3], "reference": "It rains.", "tools": [TOOL]}


@pytest.mark.parametrize(
    ("normalize", "row", "said"),
    [
        (formats.chat, {"prompt": "Hi", "label": 3}, r"fields 'prompt', 'label', which data=prompts can read"),
        (formats.chat, {"text": "Once"}, "got fields 'text', which data=text can read"),
        (
            formats.chat,
            {"ask": "Hi", "reply": "Yes"},
            "\"messages\", or \"conversations\", or .*got fields 'ask', 'reply'$",
        ),
        (formats.preference, {"messages": turns("Hi", "Yes")}, "'messages', which data=chat can read"),
        (
            formats.preference,
            {"winner": "a"},
            '"chosen" and "rejected", or "completions" and "ranks", or .*\'winner\'$',
        ),
        (formats.prompts, {"ask": "Hi"}, 'a field "prompt" or "question" or "query", or the fields of a demonstration'),
        (formats.text, {"messages": turns("Hi", "Yes")}, 'a field "text" or "content".*which data=chat can read'),
        (formats.chat, {"question": "Which?", "options": ["a", "b"], "answer": "a"}, 'column "options", which is not'),
        (formats.prompts, {"question": "Which?", "context": "c"}, 'column "context", which is not read'),
        (
            formats.preference,
            {"instruction": "Hi", "completions": [{"response": "Yes", "overall_score": None}]},
            r"completions\[0\].overall_score as a number, got None",
        ),
        (formats.preference, {"instruction": "Hi", "completions": ["Yes"]}, 'overall_score"}, got list'),
        (
            formats.preference,
            {"input": "Hi", "preferred_output": [answer("a")], "non_preferred_output": [answer("b")]},
            r'"input" as {"messages", "tools"\?}, got str',
        ),
        (
            formats.preference,
            {"conversations": turns("Hi", "Yes"), "chosen": "a", "rejected": "b"},
            'a "prompt" that ends with a question',
        ),
        (formats.chat, {"messages": [*turns("Hi"), answer("", tool_calls="{")]}, r"tool_calls as JSON"),
        (
            formats.chat,
            {"messages": [*turns("Hi"), {"role": "tool_call", "content": "weather"}]},
            r"\[1\].content as JSON",
        ),
        (
            formats.chat,
            {
                "conversations": [{"from": "human", "value": "<image>\nHi"}, {"from": "gpt", "value": "A"}],
                "image": "x.png",
            },
            'without "image", which <image> refers to',
        ),
    ],
)
def test_a_record_of_no_shape_is_refused_with_its_fields_and_what_can_be_read(normalize, row, said):
    with pytest.raises(FormatError, match=said):
        normalize(row)
