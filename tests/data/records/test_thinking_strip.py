"""data.think=strip: what an answer is without its thinking."""

import pytest

from components.data.chat import ChatData
from components.data.preference import PreferenceData
from components.data.prompts import PromptsData
from components.data.records.errors import FormatError, SourceError
from components.data.records.thinking import without_thinking

ASK = {"role": "user", "content": "Is <think> a tag?"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


def answer(text: str, **fields) -> dict:
    return {"role": "assistant", "content": text, **fields}


def stripped(message: dict) -> dict:
    asked, said = without_thinking({"messages": [ASK, message]})["messages"]
    assert asked == ASK
    return said


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nhm\n</think>\n\nYes.",
        "<think></think>Yes.",
        "hm\n</think>\n\nYes.",  # after a prompt that ends with <think>
        "<thinking>hm</thinking> Yes.",
        "[THINK]hm <b>[/THINK]Yes.",
        "<think>a</think><think>b</think>\nYes.",
        "<think>a <think>b</think> c</think>Yes.",
        "Yes.",
    ],
)
def test_only_the_answer_is_left(text):
    assert stripped(answer(text)) == answer("Yes.")
    ranked = {"prompt": [ASK], "completions": [text, answer(text)], "ranks": [0.0, 1.0]}
    assert without_thinking(ranked)["completions"] == ["Yes.", "Yes."]


def test_thinking_between_parts_of_an_answer_goes_too():
    assert stripped(answer("One. <think>hm</think> Two.")) == answer("One. Two.")


def test_thinking_in_a_field_of_its_own_goes_and_calls_stay():
    assert stripped(answer("Yes.", reasoning_content="hm")) == answer("Yes.")
    assert stripped(answer("", reasoning_content="hm", tool_calls=[CALL])) == answer("", tool_calls=[CALL])
    assert stripped(answer("<think>hm</think>", tool_calls=[CALL], weight=0)) == answer("", tool_calls=[CALL], weight=0)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (answer("<think>hm"), r"thinking in messages\[1\] that begins and ends.*got <think> alone"),
        (answer("a</think>b</think>c"), r"got </think> alone"),
        (answer("<think>hm</thinking>Yes."), r"got <think> alone"),
        (answer("<think>hm</think>\n"), r"an answer after the thinking in messages\[1\], got none"),
        (answer("", reasoning_content="hm"), r"an answer after the thinking in messages\[1\], got none"),
    ],
)
def test_thinking_without_an_answer_or_an_end_is_refused(message, said):
    with pytest.raises(FormatError, match=said):
        stripped(message)


def test_the_setting_reaches_every_format_and_is_part_of_the_cache(common, write, tok):
    thought, plain = "<think>h</think>Yes", "Yes"
    talk = [{"role": "user", "content": "q"}, answer(thought), {"role": "user", "content": "r"}]
    rows = {
        ChatData: {"messages": talk[:2]},
        PreferenceData: {"prompt": talk, "chosen": thought, "rejected": "No"},
        PromptsData: {"prompt": talk},
    }
    for kind, row in rows.items():
        texts = {}
        for think in ("keep", "strip"):
            settings = common | {"context": 128, "val_fraction": 0.0, "think": think}
            data = kind(path=write("a.jsonl", [row]), **settings)
            data.setup()
            example = data.train_examples[0]
            if kind is PromptsData:
                ids = example["ids"]
            else:
                ids = example[0] if kind is ChatData else [*example[0]["prompt"], *example[0]["completions"][0]]
            texts[think] = tok.decode(ids, skip_special=False)
        assert texts["strip"] == texts["keep"].replace(thought, plain) != texts["keep"]


def test_a_record_that_cannot_be_stripped_is_malformed_like_any_other(common, write):
    rows = [{"messages": [ASK, answer("<think>hm")]}, {"messages": [ASK, answer("Yes")]}]
    settings = common | {"val_fraction": 0.0, "think": "strip"}
    with pytest.raises(SourceError, match=r"a\.jsonl:1: expected thinking in messages\[1\] that begins and ends"):
        ChatData(path=write("a.jsonl", rows), **settings).setup()
    data = ChatData(path=write("a.jsonl", rows), on_malformed="skip", **settings)
    data.setup()
    assert (data.counts["records"], data.counts["malformed"]) == (1, 1)


def test_demonstrations_of_a_reward_model_are_stripped_too(common, write, tok):
    shown = write("chat.jsonl", [{"messages": [ASK, answer("<think>h</think>Yes")]}])
    pair = write("a.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    data = PreferenceData(path=pair, **common | {"val_fraction": 0.0, "think": "strip", "demonstrations": shown})
    data.setup()
    [batch] = data.demonstration_batches()
    assert tok.decode(batch.input_ids[0].tolist()).endswith("?Yes")
