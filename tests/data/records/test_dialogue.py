"""Thinking, tool calls, weights and columns, from a record to tokens."""

import pytest

from components.data.chat import ChatData
from components.data.preference import PreferenceData
from components.data.prompts import PromptsData
from components.data.records.errors import SourceError
from components.tokenizer.tokenizer import Tokenizer

THINKS = (  # keeps only the thinking of the last answer; writes tools and tool calls
    "{{ bos_token }}{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}{% for m in messages %}"
    "{% if m.role == 'assistant' %}<|assistant|>"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|end|>"
    "{% elif m.role == 'tool' %}<|user|>={{ m.content }}<|end|>"
    "{% else %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ASK = {"role": "user", "content": "q"}
THOUGHT = {"role": "assistant", "content": "<think>h</think>a"}
TALK = [ASK, THOUGHT, ASK, THOUGHT]
CALLING = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
CALL = '{"name": "f", "arguments": {}}'


@pytest.fixture
def thinking(common, tok) -> dict:
    return common | {"tokenizer": Tokenizer(tok.codec, THINKS), "context": 128, "val_fraction": 0.0}


def built(kind, settings, write, records, **options):
    data = kind(path=write("a.jsonl", records), **settings, **options)
    data.setup()
    return data


def dialogues(data) -> list[str]:
    """Each dialogue of a ChatData, with its targets in « »."""
    texts = []
    for i in range(len(data.train_examples)):
        ids, mask = data.train_examples[i]
        text = "".join(
            f"«{piece}»" if target else piece
            for piece, target in zip((data.tokenizer.decode([t], skip_special=False) for t in ids), mask, strict=True)
        )
        texts.append(text.replace("»«", ""))
    return sorted(texts)


def test_the_text_of_columns_precedes_the_dialogue(common, write):
    row = {"instruction": "q", "output": "a", "system": "s", "history": [["q1", "a1"]]}
    data = built(ChatData, common | {"val_fraction": 0.0}, write, [row])
    assert dialogues(data) == [
        "<bos><|system|>s<|end|><|user|>q1<|end|><|assistant|>«a1<|end|>»<|user|>q<|end|><|assistant|>«a<|end|>»"
    ]


def test_a_dialogue_whose_thinking_is_forgotten_is_unrolled_into_its_answers(thinking, write):
    data = built(ChatData, thinking, write, [{"messages": TALK}, {"messages": TALK[:2]}])
    first = "<bos><|user|>q<|end|><|assistant|>«<think>h</think>a<|end|>»"
    second = "<bos><|user|>q<|end|><|assistant|>a<|end|><|user|>q<|end|><|assistant|>«<think>h</think>a<|end|>»"
    assert dialogues(data) == sorted([first, second, first])
    assert (data.counts["records"], data.counts["unrolled"], len(data.train_examples)) == (2, 1, 3)


def test_turns_of_weight_0_are_not_targets_and_a_record_of_nothing_else_is_dropped(common, write):
    light, heavy = {**THOUGHT, "weight": 0}, {"role": "assistant", "content": "b", "weight": 1}
    records = [{"messages": [ASK, light, ASK, heavy]}, {"messages": [ASK, light]}]
    for options, expected in (
        ({}, "<bos><|user|>q<|end|><|assistant|><think>h</think>a<|end|><|user|>q<|end|><|assistant|>«b<|end|>»"),
        (
            {"train_on_prompt": True},
            "«<bos><|user|>q<|end|><|assistant|>»<think>h</think>a<|end|>«<|user|>q<|end|><|assistant|>b<|end|>»",
        ),
    ):
        data = built(ChatData, common | {"val_fraction": 0.0}, write, records, **options)
        assert expected in dialogues(data)
        assert data.counts["dropped"] == (1 if not options else 0)


def test_tools_and_their_calls_reach_the_tokens_of_every_kind_of_data(thinking, write, tok):
    tools = [{"name": "f"}]
    shared = [ASK, CALLING, {"role": "tool", "content": "r"}]
    written = '<bos><|system|>[{"type": "function", "function": {"name": "f"}}]<|end|><|user|>q<|end|>'
    asked = f"{written}<|assistant|>{CALL}<|end|><|user|>=r<|end|><|assistant|>"
    data = built(
        ChatData, thinking, write, [{"messages": [*shared, {"role": "assistant", "content": "a"}], "tools": tools}]
    )
    assert dialogues(data) == [f"{written}<|assistant|>«{CALL}<|end|>»<|user|>=r<|end|><|assistant|>«a<|end|>»"]
    pair = {"prompt": shared, "chosen": "a", "rejected": [CALLING], "tools": tools}
    [record] = built(PreferenceData, thinking, write, [pair]).train_examples[0]
    assert tok.decode(record["prompt"], skip_special=False) == asked
    assert [tok.decode(ids, skip_special=False) for ids in record["completions"]] == ["a<|end|>", f"{CALL}<|end|>"]
    rows = [{"prompt": shared, "tools": tools}, {"prompt": shared}]
    prompts = built(PromptsData, thinking | {"context": 512}, write, rows).train_examples
    texts = {tok.decode(prompts[i]["ids"], skip_special=False) for i in range(2)}
    assert texts == {asked, "<bos>" + asked.removeprefix(written.removesuffix("<|user|>q<|end|>"))}


def test_a_prompt_forgets_the_thinking_of_its_history(thinking, write, tok):
    data = built(PromptsData, thinking, write, [{"prompt": TALK[:3]}])
    text = tok.decode(data.train_examples[0]["ids"], skip_special=False)
    assert text == "<bos><|user|>q<|end|><|assistant|>a<|end|><|user|>q<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (ChatData, {"messages": TALK[:2]}, {"messages": [ASK, {**THOUGHT, "reasoning_content": "x"}]}),
        (ChatData, {"messages": TALK[:2]}, {"messages": TALK[:2], "tools": [{"name": "f"}]}),
        (
            PreferenceData,
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            {"prompt": "q", "chosen": "a", "rejected": [CALLING]},
        ),
        (PromptsData, {"prompt": "q"}, {"prompt": [ASK, CALLING, {"role": "tool", "content": "r"}]}),
    ],
)
def test_a_record_that_the_template_refuses_is_malformed_like_any_other(common, write, caplog, kind, good, bad):
    settings = common | {"val_fraction": 0.0}
    with pytest.raises(SourceError, match=r"a\.jsonl:2: .*Fix it, or skip such records with data.on_malformed=skip"):
        built(kind, settings, write, [good, bad])
    data = built(kind, settings, write, [good, bad], on_malformed="skip")
    assert (data.counts["records"], data.counts["malformed"], len(data.train_examples)) == (1, 1, 1)
    assert "a.jsonl:2: message" in caplog.text or "a.jsonl:2: the chat template" in caplog.text
    assert "1 of 2 records malformed" in caplog.text


def test_demonstrations_that_the_template_refuses_are_skipped_too(common, write):
    bad = {"messages": [ASK, {**THOUGHT, "reasoning_content": "x"}]}
    path = write("chat.jsonl", [bad, {"messages": [ASK, {"role": "assistant", "content": "shown"}]}])
    settings = common | {"val_fraction": 0.0, "demonstrations": path}
    pair = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    [batch] = built(PreferenceData, settings, write, pair, on_malformed="skip").demonstration_batches()
    assert len(batch.last) == 1
    with pytest.raises(SourceError, match="reasoning_content"):
        list(built(PreferenceData, settings, write, pair).demonstration_batches())


def test_fields_of_messages_that_are_not_read_are_reported_and_counted(common, write, caplog):
    told = {"messages": [ASK, {"role": "assistant", "content": "a", "mood": "merry"}], "source": "web"}
    data = built(ChatData, common | {"val_fraction": 0.0}, write, [told, told, {"messages": TALK}])
    assert data.counts["unread_mood"] == 2
    assert "2 of 3 records with 'mood' in a message, which is not read" in caplog.text
    assert "source" not in caplog.text
