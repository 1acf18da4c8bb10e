"""Templates that rewrite messages: answers with thinking, tool calls; each answer follows its own prompt."""

import json

import pytest

from components.tokenizer.codec import TokenizerError
from components.tokenizer.tokenizer import Tokenizer
from tests.kit import foreign_tokenizers

HEAD = "{% for m in messages %}{% if m.role == 'assistant' %}"
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
# keeps the thinking of answers to the last question alone, and writes an empty one where the last has none
FORGETFUL = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% set at = namespace(asked=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set at.asked = loop.index0 %}{% endif %}{% endfor %}"
    + HEAD
    + "{% set said, thought = m.content, m.reasoning_content or '' %}{% if '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>assistant\n"
    "{% if loop.index0 > at.asked and (loop.last or thought) %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ said }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}<|im_start|>user\nResult: {{ m.content }}<|im_end|>\n"
    "{% else %}" + TURN + "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# shows no thinking at all, and lets every prompt begin to think
BEGUN = (
    HEAD + "<|im_start|>assistant\n{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n"
    "{% else %}"
    + TURN
    + "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
ASKED = [{"role": "user", "content": "Where ?"}, {"role": "user", "content": "Why ?"}]
THOUGHT = [
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nIn cave ."},
    {"role": "assistant", "content": "<think>\noh\n</think>\n\nSo ."},
]
TALK = [ASKED[0], THOUGHT[0], ASKED[1], THOUGHT[1]]
TOOL = {"type": "function", "function": {"name": "weather"}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "toz"}}}
CALLING = {"role": "assistant", "content": "", "reasoning_content": "let me see", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "sunny"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(template) -> a tokenizer like Qwen 2's with it."""

    def make(template: str) -> Tokenizer:
        folder = foreign_tokenizers.qwen2(tmp_path_factory.mktemp("qwen2"))
        (folder / "chat_template.jinja").write_text(template, "utf-8")
        return Tokenizer.load(folder)

    return make


@pytest.fixture(scope="module")
def forgetful(made):
    return made(FORGETFUL)


@pytest.fixture(scope="module")
def begun(made):
    return made(BEGUN)


def said(tokenizer, rendered) -> str:
    """Text of a rendering; the targets in « »."""
    text, inside = "", False
    for token, target in zip([*rendered.ids, None], [*rendered.mask, False], strict=True):
        if target != inside:
            text, inside = text + ("«" if target else "»"), target
        text += "" if token is None else tokenizer.decode([token], skip_special=False)
    return text.replace("<|im_start|>", "<").replace("<|im_end|>\n", ">").replace("<|im_end|>", ">")


def test_if_thinking_is_dropped_each_answer_is_an_example_with_its_own(forgetful):
    assert [said(forgetful, one) for one in forgetful.examples(TALK)] == [
        "<user\nWhere ?><assistant\n«<think>\nhm\n</think>\n\nIn cave .>»\n",
        "<user\nWhere ?><assistant\nIn cave .><user\nWhy ?><assistant\n«<think>\noh\n</think>\n\nSo .>»\n",
    ]
    assert forgetful.render(TALK) == forgetful.examples(TALK)[-1]


def test_if_a_prompt_starts_the_thinking_the_answer_continues_it(begun):
    assert begun.prefill == "<think>\n"
    assert [said(begun, one) for one in begun.examples(TALK)] == [
        "<user\nWhere ?><assistant\n<think>\n«hm\n</think>\n\nIn cave .>»\n",
        "<user\nWhere ?><assistant\nIn cave .><user\nWhy ?><assistant\n<think>\n«oh\n</think>\n\nSo .>»\n",
    ]
    answers = ["hm\n</think>\n\nSo .", "<think>hm\n</think>\n\nSo .", "<think>\nhm\n</think>\n\nSo ."]
    assert [begun.decode(begun.answer(text)) for text in answers] == ["hm\n</think>\n\nSo ."] * 3


def test_an_answer_without_thinking_ends_at_once_the_thinking_of_its_prompt(begun):
    assert said(begun, begun.render([ASKED[0], {"role": "assistant", "content": "In cave ."}])) == (
        "<user\nWhere ?><assistant\n<think>\n«</think>\n\nIn cave .>»\n"
    )


@pytest.mark.parametrize("template", ["forgetful", "begun"])
def test_every_example_starts_with_the_exact_prompt_and_contains_its_answer(template, request):
    tokenizer = request.getfixturevalue(template)
    plain = [{"role": "assistant", "content": text} for text in ("yes .", "no .")]
    for first, second in ([THOUGHT[0], THOUGHT[1]], plain, [plain[0], THOUGHT[1]], [THOUGHT[0], plain[1]]):
        talk = [ASKED[0], first, ASKED[1], second]
        for number, (ids, mask) in zip((1, 3), tokenizer.examples(talk), strict=True):
            prompt = tokenizer.render_prompt(talk[:number])
            assert ids[: len(prompt)] == prompt and not any(mask[: len(prompt)])
            answer = [token for token, target in zip(ids, mask, strict=True) if target]
            assert answer == tokenizer.answer(talk[number]["content"]) == ids[len(prompt) : len(prompt) + len(answer)]
            assert answer[-1] == tokenizer.end_id


def test_a_prompt_forgets_the_thinking_before_it(forgetful, begun):
    for tokenizer in (forgetful, begun):
        prompt = tokenizer.decode(tokenizer.render_prompt(TALK[:3]))
        assert "hm" not in prompt and "In cave ." in prompt


def test_thinking_in_a_field_of_its_own_is_thinking(forgetful, begun):
    for tokenizer in (forgetful, begun):
        apart = {"role": "assistant", "content": "In cave .", "reasoning_content": "hm"}
        assert tokenizer.examples([ASKED[0], apart, *TALK[2:]]) == tokenizer.examples(TALK)


def test_answers_that_stay_as_they_were_share_an_example(forgetful):
    talk = [ASKED[0], CALLING, RESULT, THOUGHT[0]]
    [whole] = forgetful.examples(talk, [TOOL])
    assert said(forgetful, whole) == (
        '<system\nTools: [{"type": "function", "function": {"name": "weather"}}]><user\nWhere ?><assistant\n'
        "«<think>\nlet me see\n</think>\n\n"
        '<tool_call>{"name": "weather", "arguments": {"place": "toz"}}</tool_call>>»\n'
        "<user\nResult: sunny><assistant\n«<think>\nhm\n</think>\n\nIn cave .>»\n"
    )
    prompt = forgetful.render_prompt(talk[:3], [TOOL])
    assert whole.ids[: len(prompt)] == prompt
    assert len(forgetful.examples([*talk, ASKED[1], THOUGHT[1]], [TOOL])) == 2


def test_a_call_of_several_arguments_is_written_in_their_order(forgetful):
    arguments = {"place": "toz", "when": {"day": "today", "hours": ["noon", 18]}, "unit": "celsius"}
    calling = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "weather"} | {"arguments": arguments}}],
    }
    [whole] = forgetful.examples([ASKED[0], calling], [TOOL])
    assert json.dumps(arguments) in said(forgetful, whole).split("«")[1]


def test_transformers_renders_the_same_ids(forgetful, tmp_path):
    transformers = pytest.importorskip("transformers")
    forgetful.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for talk, tools in ((TALK, None), ([ASKED[0], CALLING, RESULT, THOUGHT[0]], [TOOL])):
        assert forgetful.render(talk, tools).ids == theirs.apply_chat_template(talk, tools, return_dict=False)
        prompt = theirs.apply_chat_template(talk[:3], tools, add_generation_prompt=True, return_dict=False)
        assert forgetful.render_prompt(talk[:3], tools) == prompt


def test_a_turn_of_weight_0_is_not_a_target_in_any_template(forgetful, begun, tokenizer):
    for one in (forgetful, begun, tokenizer):
        first, second = ([{**turn, "weight": weight} for turn in THOUGHT] for weight in (0, 1))
        whole = one.examples(TALK)
        half = one.examples([ASKED[0], first[0], ASKED[1], second[1]])
        assert [made.ids for made in half] == [made.ids for made in whole]
        assert sum(map(sum, (made.mask for made in half))) == len(one.answer(THOUGHT[1]["content"]))
        assert half[-1].mask[-10:] == whole[-1].mask[-10:]


def test_a_template_that_leaves_thinking_alone_makes_one_example(tokenizer):
    assert tokenizer.examples(TALK) == [tokenizer.render(TALK)]
    assert tokenizer.prefill == ""
    answers = [tokenizer.encode(turn["content"]) + [tokenizer.end_id] for turn in THOUGHT]
    ids, mask = tokenizer.render(TALK)
    assert [token for token, target in zip(ids, mask, strict=True) if target] == answers[0] + answers[1]


@pytest.mark.parametrize("hostile", ["<|im_end|>", "<|im_start|>user\n", "x<|endoftext|>\ue0020\ue002", "\ue003"])
def test_text_next_to_thinking_never_becomes_a_special_token(forgetful, begun, hostile):
    for tokenizer in (forgetful, begun):
        special = set(tokenizer.codec.special_ids.values())

        def specials(text, tokenizer=tokenizer, special=special):
            thought = {"role": "assistant", "content": f"<think>\n{text}\n</think>\n\n{text}"}
            asked = {"role": "user", "content": text}
            [_, made] = tokenizer.examples([asked, thought, asked, thought])
            assert text in tokenizer.decode(made.ids, skip_special=False)
            return [token for token in made.ids if token in special]

        assert specials(hostile) == specials("x")


@pytest.mark.parametrize(
    ("talk", "tools", "complaint"),
    [
        ([ASKED[0], {**CALLING, "reasoning_content": ""}], None, "omits or changes 'weather'.*with tool_calls"),
        ([ASKED[0], CALLING, RESULT, THOUGHT[0]], None, "message 2: unknown role 'tool'"),
        ([ASKED[0], THOUGHT[0]], [TOOL], "does not write the tools"),
        ([ASKED[0], {**THOUGHT[0], "reasoning_content": "hm"}], None, "does not write reasoning_content"),
    ],
)
def test_our_own_template_rejects_by_name_what_it_cannot_write(tokenizer, talk, tools, complaint):
    for act in (tokenizer.render, tokenizer.examples):
        with pytest.raises(TokenizerError, match=complaint):
            act(talk, tools)
    if tools or len(talk) > 2:
        with pytest.raises(TokenizerError, match=complaint):
            tokenizer.render_prompt(talk[:1] if tools else talk[:3], tools)


def test_a_role_that_the_template_writes_as_the_assistants_is_unknown(made):
    two = made(BEGUN.replace("{% if m.role == 'assistant' %}", "{% if m.role != 'user' %}"))
    with pytest.raises(TokenizerError, match="message 0: unknown role 'system', expected user, assistant"):
        two.render([{"role": "system", "content": "Be brief."}, ASKED[0], THOUGHT[0]])
    with pytest.raises(TokenizerError, match="unknown role 'tool'"):
        two.render_prompt([ASKED[0], THOUGHT[0], RESULT])


def test_a_template_that_expects_arguments_as_text_gets_them_as_json(made):
    call = "<tool_call>{{ call.function.name + ' ' + call.function.arguments }}</tool_call>"
    tokenizer = made(FORGETFUL.replace("<tool_call>{{ call.function | tojson }}</tool_call>", call))
    assert '<tool_call>weather {"place": "toz"}</tool_call>' in said(tokenizer, tokenizer.render([ASKED[0], CALLING]))


def test_a_template_that_drops_text_other_than_thinking_is_refused(made):
    first = made(FORGETFUL.replace("{{ m.content }}", "{{ m.content.split('.')[0] }}"))
    talk = [{"role": "user", "content": "One. Two."}, THOUGHT[0], *TALK[2:]]
    for act in (first.render, lambda talk: first.render_prompt(talk[:3])):
        with pytest.raises(TokenizerError, match="message 0: the chat template omits or changes 'One. Two.'"):
            act(talk)


def test_our_own_codec_takes_such_templates_too(tokenizer):
    source = FORGETFUL.replace("<|im_start|>{{ m.role }}\n", "<|user|>").replace(
        "<|im_start|>assistant\n", "<|assistant|>"
    )
    own = Tokenizer(tokenizer.codec, "{{ bos_token }}" + source.replace("<|im_end|>", "<|end|>"))
    for number, (ids, _) in zip((1, 3), own.examples(TALK), strict=True):
        prompt, answer = own.render_prompt(TALK[:number]), own.answer(TALK[number]["content"])
        assert ids[: len(prompt) + len(answer)] == prompt + answer
    assert own.decode(own.answer("So .")) == "<think>\n\n</think>\n\nSo ."
