"""What the loss of a demonstration covers, worked by hand, with our template and those of published models."""

import pytest
import torch

from components.data.chat import ChatData
from components.tokenizer.tokenizer import Tokenizer
from tests.kit import foreign_tokenizers, tool_templates

SHORT = {"<|im_start|>": "<", "<|im_end|>": ">", "<|start_header_id|>": "<", "<|end_header_id|>": "|"} | {
    "<|eot_id|>": ">",
    "<|begin_of_text|>": "",
}
SYSTEM = {"role": "system", "content": "Be brief."}
ASK, WHY = ({"role": "user", "content": text} for text in ("Where ?", "Why ?"))
SAID, SO = ({"role": "assistant", "content": text} for text in ("In cave .", "So ."))
TALK = [SYSTEM, ASK, SAID, WHY, SO]
TOOL = {"type": "function", "function": {"name": "find"}}
CALL = {"type": "function", "function": {"name": "find", "arguments": '{"who": "dax", "deep": 2}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": '{"in": "cave"}'}
AGENT = [ASK, CALLING, RESULT, SAID, WHY, SO]
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nIn cave ."}
APART = {"role": "assistant", "content": "So .", "reasoning_content": "oh"}
THINKING = [ASK, THOUGHT, WHY, APART]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory, tok):
    """By the name of their template; all but ours with a byte-level vocabulary."""

    def made(name: str) -> Tokenizer:
        make = foreign_tokenizers.llama3 if name == "LLAMA31" else foreign_tokenizers.qwen2
        folder = make(tmp_path_factory.mktemp(name))
        (folder / "chat_template.jinja").write_text(getattr(tool_templates, name), "utf-8")
        return Tokenizer.load(folder)

    return {"own": tok} | {name: made(name) for name in ("CHATML", "NO_THINKING", "QWEN25", "QWEN3", "LLAMA31")}


@pytest.fixture
def data(tokenizers, write, tmp_path):
    """data(template, record, …) -> ChatData of the records."""

    def build(name: str, *records: dict, **options) -> ChatData:
        settings = {"context": 512, "cache_dir": str(tmp_path / "cache"), "val_fraction": 0.0, **options}
        return ChatData(tokenizer=tokenizers[name], path=write("a.jsonl", list(records)), **settings)

    return build


def shown(data: ChatData) -> list[str]:
    """The examples as text, with the targets in « » and shorter names of special tokens."""
    texts = []
    [(source, _)] = data.sources()
    records = [record for _, record in data.records_of(source, data.counts)]
    for columns in (columns for record in records for columns in data.tokenize(record, data.counts)):
        text, inside = "", False
        for token, target in zip([*columns["ids"], None], [*columns["mask"], False], strict=True):
            if target != inside:
                text, inside = text + ("«" if target else "»"), target
            text += "" if token is None else data.tokenizer.decode([token], skip_special=False)
        for name, short in SHORT.items():
            text = text.replace(name, short)
        texts.append(text)
    return texts


HEADER = "<system|\n\nToday: 26 Jul 2024\n\n"
MULTI_TURN = {
    "own": "<bos><|system|>Be brief.<|end|><|user|>Where ?<|end|><|assistant|>«In cave .<|end|>»"
    "<|user|>Why ?<|end|><|assistant|>«So .<|end|>»",
    "CHATML": "<system\nBe brief.>\n<user\nWhere ?>\n<assistant\n«In cave .>»\n<user\nWhy ?>\n<assistant\n«So .>»\n",
    "QWEN25": "<system\nBe brief.>\n<user\nWhere ?>\n<assistant\n«In cave .>»\n<user\nWhy ?>\n<assistant\n«So .>»\n",
    "LLAMA31": HEADER + "Be brief.><user|\n\nWhere ?><assistant|\n\n«In cave .>»<user|\n\nWhy ?><assistant|\n\n«So .>»",
}


@pytest.mark.parametrize("name", MULTI_TURN)
def test_every_answer_and_its_end_of_turn_are_targets(name, data):
    assert shown(data(name, {"messages": TALK})) == [MULTI_TURN[name]]


@pytest.mark.parametrize("name", MULTI_TURN)
def test_with_train_on_last_only_the_last_answer_is(name, data):
    first = "«In cave .<|end|>»" if name == "own" else "«In cave .>»"
    expected = MULTI_TURN[name].replace(first, first.strip("«»"))
    assert shown(data(name, {"messages": TALK}, train_on="last")) == [expected]
    assert shown(data(name, {"messages": [*TALK[:2], SAID | {"weight": 0}, *TALK[3:]]})) == [expected]
    assert shown(data(name, {"messages": TALK[1:], "system": "Be brief."}, train_on="last")) == [expected]
    before, after = expected.replace("«", "").replace("»", "").split(first.strip("«»"))
    everything = shown(data(name, {"messages": TALK}, train_on="last", train_on_prompt=True))
    assert everything == [f"«{before}»{first.strip('«»')}«{after}»"]


def test_if_the_last_answer_has_weight_0_nothing_is_left_to_learn_from_it(data):
    assert shown(data("own", {"messages": [*TALK[:4], SO | {"weight": 0}]}, train_on="last")) == []


def test_with_thinking_every_answer_follows_the_prompt_that_asks_for_it(data):
    """Qwen 3 drops the thinking of earlier answers from a prompt, so that each answer is an example of its own."""
    first = "<user\nWhere ?>\n<assistant\n«<think>\nhm\n</think>\n\nIn cave .>»\n"
    second = "<user\nWhere ?>\n<assistant\nIn cave .>\n<user\nWhy ?>\n<assistant\n«<think>\noh\n</think>\n\nSo .>»\n"
    made = data("QWEN3", {"messages": THINKING})
    assert shown(made) == [first, second] and made.counts["unrolled"] == 1
    assert shown(data("QWEN3", {"messages": THINKING}, train_on="last")) == [second]
    assert shown(data("QWEN3", {"messages": [ASK, THOUGHT | {"weight": 0}, WHY, APART]})) == [second]


def test_what_only_a_prompt_says_before_the_answer_is_no_target_and_not_in_the_history(data):
    first = "<user\nWhere ?>\n<assistant\n<think>\n\n</think>\n\n«In cave .>»\n"
    second = "<user\nWhere ?>\n<assistant\nIn cave .>\n<user\nWhy ?>\n<assistant\n<think>\n\n</think>\n\n«So .>»\n"
    assert shown(data("NO_THINKING", {"messages": [ASK, SAID, WHY, SO]})) == [first, second]
    assert shown(data("NO_THINKING", {"messages": [ASK, SAID, WHY, SO]}, train_on="last")) == [second]


def test_a_template_that_keeps_thinking_makes_one_example(data):
    talk = [ASK, THOUGHT, WHY, SO]
    expected = (
        "<user\nWhere ?>\n<assistant\n«<think>\nhm\n</think>\n\nIn cave .>»\n<user\nWhy ?>\n<assistant\n«So .>»\n"
    )
    assert shown(data("CHATML", {"messages": talk})) == [expected]


@pytest.mark.parametrize("name", ["own", "CHATML", "QWEN25", "QWEN3", "LLAMA31"])
def test_without_thinking_the_examples_are_those_of_the_answers_alone(name, data):
    plain = shown(data(name, {"messages": [ASK, SAID, WHY, SO]}))
    assert shown(data(name, {"messages": THINKING}, think="strip")) == plain
    assert not any("hm" in text or "oh" in text for text in plain)
    if name == "QWEN3":  # this model's own way to answer at once
        assert plain[1].endswith("<assistant\n«<think>\n\n</think>\n\nSo .>»\n")


AGENTS = {
    "QWEN25": '<system\nTools:\n{"type": "function", "function": {"name": "find"}}>\n<user\nWhere ?>\n<assistant\n'
    '«<tool_call>\n{"name": "find", "arguments": {"who": "dax", "deep": 2}}\n</tool_call>>»\n'
    '<user\n<tool_response>\n{"in": "cave"}\n</tool_response>>\n<assistant\n«In cave .>»\n'
    "<user\nWhy ?>\n<assistant\n«So .>»\n",
    "LLAMA31": HEADER + '><user|\n\nFunctions:\n{\n    "type": "function",\n    "function": {\n        '
    '"name": "find"\n    }\n}\n\nWhere ?><assistant|\n\n'
    '«{"name": "find", "parameters": {"who": "dax", "deep": 2}}>»<ipython|\n\n"{\\"in\\": \\"cave\\"}">'
    "<assistant|\n\n«In cave .>»<user|\n\nWhy ?><assistant|\n\n«So .>»",
}


@pytest.mark.parametrize("name", AGENTS)
def test_calls_are_targets_and_tools_and_their_results_are_not(name, data):
    assert shown(data(name, {"messages": AGENT, "tools": [TOOL]})) == [AGENTS[name]]
    [last] = shown(data(name, {"messages": AGENT, "tools": [TOOL]}, train_on="last"))
    assert last.count("«") == 1 and last.replace("«", "") == AGENTS[name].replace("«", "").replace("»", "", 2)


def test_several_calls_at_once_are_one_answer(data):
    second = {"function": {"name": "find", "arguments": {"who": "fep"}}}
    calling = {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, second]}
    talk = {"messages": [ASK, calling, RESULT, RESULT, SAID], "tools": [TOOL]}
    [text] = shown(data("QWEN25", talk))
    assert text.endswith(
        '<assistant\n«Let me see.\n<tool_call>\n{"name": "find", "arguments": {"who": "dax", "deep": 2}}\n</tool_call>'
        '\n<tool_call>\n{"name": "find", "arguments": {"who": "fep"}}\n</tool_call>>»\n<user'
        '\n<tool_response>\n{"in": "cave"}\n</tool_response>\n<tool_response>\n{"in": "cave"}\n</tool_response>>\n'
        "<assistant\n«In cave .>»\n"
    )


def test_the_thinking_between_calls_is_learned_until_the_next_question(data):
    talk = [ASK, CALLING | {"reasoning_content": "look"}, RESULT, THOUGHT, WHY, APART]
    first, second = shown(data("QWEN3", {"messages": talk, "tools": [TOOL]}))
    call = '<tool_call>\n{"name": "find", "arguments": {"who": "dax", "deep": 2}}\n</tool_call>'
    result = '<user\n<tool_response>\n{"in": "cave"}\n</tool_response>>\n'
    assert first.endswith(
        f"<assistant\n«<think>\nlook\n</think>\n\n\n{call}>»\n{result}"
        "<assistant\n«<think>\nhm\n</think>\n\nIn cave .>»\n"
    )
    assert second.endswith(
        f"<assistant\n\n{call}>\n{result}<assistant\nIn cave .>\n"
        "<user\nWhy ?>\n<assistant\n«<think>\noh\n</think>\n\nSo .>»\n"
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("own", {}),
        ("CHATML", {"train_on": "last"}),
        ("LLAMA31", {"train_on_prompt": True}),
        ("QWEN3", {"train_on": "last", "think": "strip"}),
    ],
)
def test_packed_dialogues_have_the_inputs_and_targets_that_they_have_alone(name, options, data):
    records = [{"messages": talk} for talk in (TALK, TALK[1:3], [ASK, SAID | {"weight": 0}, WHY, SO], TALK[:3])]
    together, alone = (data(name, *records, batch_size=size, context=128, **options) for size in (len(records) * 2, 1))

    together.setup()
    alone.setup()

    def documents(batches) -> list[tuple[list[int], ...]]:
        found = []
        for batch in batches:
            for row in range(len(batch.input_ids)):
                for segment in range(int(batch.layout.segments[row].max()) + 1):
                    here = batch.layout.segments[row] == segment
                    parts = (batch.input_ids, batch.targets, batch.mask, batch.layout.positions)
                    found.append(tuple(part[row][here].tolist() for part in parts))
        return sorted(found)

    [batch], singles = list(together.train_dataloader()), list(alone.train_dataloader())
    assert documents([batch]) == documents(singles) and len(batch.input_ids) < len(singles)
    assert torch.stack([single.num_bytes for single in singles]).sum() == batch.num_bytes
