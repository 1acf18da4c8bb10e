"""Foreign chat templates: conversations → ids and mask."""

import json
import logging
import random

import pytest

from components.tokenizer.codec import TokenizerError
from components.tokenizer.template import ChatTemplate
from components.tokenizer.tokenizer import Tokenizer
from tests.kit import foreign_tokenizers

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where ?"},
    {"role": "assistant", "content": "In cave ."},
    {"role": "user", "content": "Why ?"},
    {"role": "assistant", "content": "So ."},
]
CHATS = [
    "qwen2",
    "llama3",
    "gpt2-vicuna",
    "llama2",
    "llama2-legacy",
    "llama2-unspaced",
    "vicuna",
    "zephyr",
    "mistral",
    "mistral-legacy",
]


def shown(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> str:
    """The text of a rendered conversation, with special tokens by name and the masked parts in « »."""
    ids, mask = tokenizer.render(messages)
    text, inside = b"", False
    for token, masked in zip([*ids, None], [*mask, False]):
        if masked != inside:
            text, inside = text + ("«" if masked else "»").encode(), masked
        if token is not None:
            text += tokenizer.codec.bytes_of(token, skip_special=False)
    return text.decode()


@pytest.mark.parametrize(
    ("name", "first", "expected"),
    [
        (
            "qwen2",
            0,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhere ?<|im_end|>\n"
            "<|im_start|>assistant\n«In cave .<|im_end|>»\n<|im_start|>user\nWhy ?<|im_end|>\n"
            "<|im_start|>assistant\n«So .<|im_end|>»\n",
        ),
        (
            "qwen2",
            3,  # the template's own system message
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhy ?<|im_end|>\n"
            "<|im_start|>assistant\n«So .<|im_end|>»\n",
        ),
        (
            "llama3",
            1,
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhere ?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n«In cave .<|eot_id|>»"
            "<|start_header_id|>user<|end_header_id|>\n\nWhy ?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n«So .<|eot_id|>»",
        ),
        (
            "llama2",
            0,
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhere ? [/INST]« In cave . </s>»"
            "<s>[INST] Why ? [/INST]« So . </s>»",
        ),
        (
            "llama2-legacy",
            1,  # a space after every special token
            "<s> [INST] Where ? [/INST]« In cave . </s>»<s> [INST] Why ? [/INST]« So . </s>»",
        ),
        ("mistral", 1, "<s> [INST] Where ? [/INST]« In cave .</s>» [INST] Why ? [/INST]« So .</s>»"),
        (
            "zephyr",
            0,
            " <|system|>\nBe brief.</s> \n<|user|>\nWhere ?</s> \n<|assistant|>\n«In cave .</s>» \n"
            "<|user|>\nWhy ?</s> \n<|assistant|>\n«So .</s>» \n",
        ),
        (
            "vicuna",
            0,
            "<s>Be brief. USER: Where ? ASSISTANT:« In cave .</s>»USER: Why ? ASSISTANT:« So .</s>»",
        ),
        (
            "gpt2",
            0,  # no template: the plain one
            "<|endoftext|>Be brief.\nUSER: Where ?\nASSISTANT:« In cave .<|endoftext|>»"
            "USER: Why ?\nASSISTANT:« So .<|endoftext|>»",
        ),
    ],
)
def test_the_mask_covers_what_the_assistant_has_to_write(published, name, first, expected):
    assert shown(Tokenizer.load(published[name]), TALK[first:]) == expected


@pytest.fixture(params=CHATS)
def both(request, published):
    """A tokenizer, and transformers' from the same folder."""
    transformers = pytest.importorskip("transformers")
    folder = published[request.param]
    return Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)


def conversations(count: int, specials: dict[str, int], *, system: bool) -> list[list[dict[str, str]]]:
    """Ordinary conversations of one to three rounds: mixed texts without the names of special tokens."""
    draw, made = random.Random(1), []
    plain = [text for text in foreign_tokenizers.texts(500, seed=2, without=tuple(specials)) if text.strip()]
    for _ in range(count):
        roles = ("user", "assistant") * draw.randint(1, 3)
        turns = [{"role": role, "content": draw.choice(plain)} for role in roles]
        made.append([{"role": "system", "content": draw.choice(plain)}] * (system and draw.random() < 0.5) + turns)
    return made


def test_chats_and_prompts_have_transformers_ids(both):
    ours, theirs = both
    system = "loop.last and turns" not in ours.chat_template  # Mistral's writes a system message in prompts only
    for messages in conversations(60, ours.codec.special_ids, system=system):
        assert ours.render(messages).ids == theirs.apply_chat_template(messages, return_dict=False)
        prompt = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        assert ours.render_prompt(messages[:-1]) == prompt


def test_a_chat_continues_its_prompt_with_the_answer(both):
    ours, _ = both
    for text in ["In cave .", "x", "今天天气很好", "def f():\n    pass", ""]:
        messages = [{"role": "user", "content": "Where ?"}, {"role": "assistant", "content": text}]
        prompt, (ids, mask) = ours.render_prompt(messages[:1]), ours.render(messages)
        answer = ours.answer(text)
        assert ids[: len(prompt) + len(answer)] == prompt + answer
        assert mask == [False] * len(prompt) + [True] * len(answer) + [False] * (len(ids) - len(prompt) - len(answer))
        assert answer[-1] == ours.end_id


def test_content_that_spells_specials_never_becomes_them(both):
    ours, _ = both
    special = set(ours.codec.special_ids.values())

    def specials_of(content: str) -> list[int]:
        messages = [{"role": role, "content": content} for role in ("user", "assistant", "user", "assistant")]
        return [token for token in ours.render(messages).ids if token in special]

    for text in foreign_tokenizers.texts(200, seed=3):
        assert specials_of(text) == specials_of("x")


def test_the_end_of_turn_is_the_first_special_after_an_answer(published):
    ends = {name: Tokenizer.load(published[name]) for name in ("qwen2", "llama3", "llama2", "gpt2")}
    assert {name: made.codec.tokens[made.end_id] for name, made in ends.items()} == {
        "qwen2": "<|im_end|>",
        "llama3": "<|eot_id|>",
        "llama2": "</s>",
        "gpt2": "<|endoftext|>",
    }


def test_a_text_ends_with_the_turn_or_the_document_or_as_generation_config_says(published):
    named = {name: Tokenizer.load(published[name]) for name in ("qwen2", "llama3")}
    pieces = {name: [made.codec.tokens[i] for i in made.stop_ids] for name, made in named.items()}
    assert pieces == {"qwen2": ["<|im_end|>", "<|endoftext|>"], "llama3": ["<|eot_id|>", "<|end_of_text|>"]}


def test_a_token_that_begins_in_the_prompt_is_not_the_assistants(published):
    qwen2 = Tokenizer.load(published["qwen2"])
    joined = "\n\n"  # the header's line end and the content's: one token, if text is split into words like that
    answer = [{"role": "user", "content": "X"}, {"role": "assistant", "content": "\nYes"}]
    assert shown(qwen2, answer).endswith(f"assistant{joined}«Yes<|im_end|>»\n")


def test_a_token_that_contains_the_end_of_the_prompt_and_a_word_is_refused(tmp_path):
    source = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = Tokenizer.load(foreign_tokenizers.gpt2(tmp_path, source))
    assert shown(tokenizer, TALK[3:]).endswith("assistant: «So .<|endoftext|>»")  # " " and "So" are two tokens
    with pytest.raises(TokenizerError, match="one token contains the end of the prompt and 'dax' of the answer"):
        tokenizer.render([TALK[1], {"role": "assistant", "content": "dax lives"}])


def test_a_template_that_only_others_can_follow_leaves_text_readable(published, tmp_path):
    folder = foreign_tokenizers.gpt2(tmp_path, "{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.decode(tokenizer.encode("dax")) == "dax"
    assert tokenizer.end_id == tokenizer.eos_id
    with pytest.raises(TokenizerError, match="changes a message's content.*chat_template.jinja"):
        tokenizer.render(TALK[1:3])


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}", "must write a special token"),
        (
            "{% for m in messages %}{{ '<|endoftext|>' + m.role + ' ' + m.content + '<|endoftext|>' }}{% endfor %}",
            "with add_generation_prompt the chat template must write the text before",
        ),
    ],
)
def test_a_template_whose_turns_cannot_be_masked_is_refused_when_it_is_used(tmp_path, template, complaint):
    tokenizer = Tokenizer.load(foreign_tokenizers.gpt2(tmp_path, template))
    for act in (tokenizer.render, tokenizer.render_prompt):
        with pytest.raises(TokenizerError, match=complaint):
            act(TALK[1:4])


def test_a_dropped_system_message_is_an_error_not_a_loss(published):
    mistral = Tokenizer.load(published["mistral"])
    assert "Be brief.\n\nWhere ?" in mistral.decode(mistral.render_prompt(TALK[:2]))
    with pytest.raises(TokenizerError, match="once, in order"):
        mistral.render(TALK)


def test_a_base_models_folder_gets_chatml_if_its_tokens_exist(published, tmp_path, caplog):
    folder = foreign_tokenizers.qwen2(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    foreign_tokenizers.write_json(folder / "tokenizer_config.json", config | {"chat_template": None})
    with caplog.at_level(logging.WARNING):
        tokenizer = Tokenizer.load(folder)
    assert "has no chat template: using ChatML" in caplog.text
    assert shown(tokenizer, TALK[3:]) == (
        "<|im_start|>user\nWhy ?<|im_end|>\n<|im_start|>assistant\n«So .<|im_end|>»\n"
    )


def test_a_base_models_folder_without_such_pieces_gets_plain_turns_that_end_with_eos(published, caplog):
    with caplog.at_level(logging.WARNING):
        Tokenizer.load(published["gpt2"])
    assert "has no chat template: using USER: … ASSISTANT: …<|endoftext|>" in caplog.text
    assert "no pad token: eos (<|endoftext|>) pads rows too" in caplog.text


def test_templates_can_use_the_date_json_tools_and_generation_tags():
    source = (
        "{{ strftime_now('%Y') | length }}{{ {'é': '<'} | tojson }}{% if tools %}tools{% endif %}"
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    segments = ChatTemplate(source, {}).segments(TALK[3:], add_generation_prompt=False)
    assert "".join(text for text, _ in segments) == '4{"é": "<"}Why ?So .'
