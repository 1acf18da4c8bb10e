"""Every field of the files next to foreign tokenizers: used, logged as ignored, or refused."""

import json
import logging
import re
import shutil
import warnings

import pytest

from components.tokenizer.codec import TokenizerError
from components.tokenizer.tokenizer import Tokenizer
from tests.kit import foreign_tokenizers

CLASSES = ["qwen2", "llama3", "gpt2", "llama2", "llama2-legacy", "zephyr", "mistral"]
OF_THE_MODEL = {  # they restrict or force the model's tokens, which no other setting can do
    "suppress_tokens": [5],
    "begin_suppress_tokens": [5, 6],
    "forced_bos_token_id": 1,
    "forced_eos_token_id": [2],
    "bad_words_ids": [[5], [6, 7]],
    "force_words_ids": [[5]],
    "constraints": ["x"],
    "sequence_bias": [[[5], -10.0]],
    "stop_strings": ["User:"],
}
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
SAMPLING |= {"max_new_tokens": 2048, "no_repeat_ngram_size": 3}


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its own imports
        return pytest.importorskip("transformers")


def with_fields(folder, file, **fields):
    """The folder with these fields in one of its JSON files."""
    old = json.loads((folder / file).read_text("utf-8")) if (folder / file).exists() else {}
    foreign_tokenizers.write_json(folder / file, old | fields)
    return folder


@pytest.mark.parametrize("name", CLASSES)
def test_what_transformers_saves_of_each_class_is_read_as_the_same(transformers, published, tmp_path, name):
    transformers.AutoTokenizer.from_pretrained(published[name]).save_pretrained(tmp_path / "saved")
    generation = transformers.GenerationConfig()
    foreign_tokenizers.write_json(tmp_path / "saved/generation_config.json", generation.to_dict())
    again, first = Tokenizer.load(tmp_path / "saved"), Tokenizer.load(published[name])
    for text in foreign_tokenizers.texts(200, seed=7):
        assert again.encode(text) == first.encode(text)


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "llama3", "llama2"])
@pytest.mark.parametrize("spaced", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_a_space_before_a_text_is_put_where_transformers_puts_one(
    transformers, published, tmp_path, name, spaced, inside
):
    folder = shutil.copytree(published[name], tmp_path / "folder")
    with_fields(folder, "tokenizer_config.json", add_prefix_space=spaced)
    if (folder / "tokenizer.json").exists():  # which can contradict the class
        text = (folder / "tokenizer.json").read_text("utf-8")
        text = re.sub(r'"add_prefix_space": ?\w+', f'"add_prefix_space": {json.dumps(inside)}', text)
        (folder / "tokenizer.json").write_text(text, "utf-8")
    Tokenizer.load(folder).save(tmp_path / "saved")
    readers = Tokenizer.load(folder), Tokenizer.load(tmp_path / "saved")
    theirs = [transformers.AutoTokenizer.from_pretrained(path) for path in (folder, tmp_path / "saved")]
    for text in ["dax", " dax", "dax lives\nin cave", "😀"]:
        found = [reader.encode(text) for reader in readers]
        found += [one.encode(text, add_special_tokens=False, split_special_tokens=True) for one in theirs]
        assert all(ids == found[0] for ids in found), text


@pytest.mark.parametrize("field", OF_THE_MODEL)
def test_tokens_that_a_generation_config_suppresses_or_forces_are_refused_by_name(tmp_path, field):
    folder = with_fields(foreign_tokenizers.gpt2(tmp_path), "generation_config.json", **{field: OF_THE_MODEL[field]})
    with pytest.raises(TokenizerError, match=rf"generation_config.json: {field}="):
        Tokenizer.load(folder)
    Tokenizer.load(with_fields(folder, "generation_config.json", **{field: None}))


def test_ids_without_a_piece_can_be_suppressed(tmp_path):
    """They are never predicted here, with or without the file; exports of padded vocabularies have them."""
    size = Tokenizer.load(foreign_tokenizers.gpt2(tmp_path)).vocab_size
    Tokenizer.load(with_fields(tmp_path, "generation_config.json", suppress_tokens=[size, size + 1]))


def test_ignored_sampling_settings_are_named_in_one_line(tmp_path, caplog):
    folder = with_fields(
        foreign_tokenizers.gpt2(tmp_path), "generation_config.json", **SAMPLING, use_cache=True, bos_token_id=1
    )
    with caplog.at_level(logging.INFO):
        Tokenizer.load(folder)
    [line] = [record.getMessage() for record in caplog.records if "ignoring " in record.getMessage()]
    assert all(f"{name}={value}" in line for name, value in SAMPLING.items())
    assert "generation_config.json" in line and "use_cache" not in line


def test_every_field_of_transformers_generation_config_is_known(transformers, tmp_path):
    names = transformers.GenerationConfig().to_dict().keys() - {"eos_token_id"} - OF_THE_MODEL.keys()
    Tokenizer.load(with_fields(foreign_tokenizers.gpt2(tmp_path), "generation_config.json", **dict.fromkeys(names, 1)))


@pytest.mark.parametrize("file", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("value", [1, False, "x", [3]])
def test_a_field_that_no_table_knows_is_refused_unless_it_is_empty(tmp_path, file, value):
    folder = with_fields(foreign_tokenizers.gpt2(tmp_path), file, a_field_of_tomorrow=value)
    with pytest.raises(TokenizerError, match=rf"{file}: a_field_of_tomorrow={re.escape(repr(value))}"):
        Tokenizer.load(folder)
    Tokenizer.load(with_fields(folder, file, a_field_of_tomorrow=None))


@pytest.mark.parametrize(
    ("field", "value"),
    [("do_lower_case", True), ("sp_model_kwargs", {"enable_sampling": True}), ("fix_mistral_regex", True)],
)
def test_what_would_change_the_ids_of_a_text_is_refused_by_name(tmp_path, field, value):
    folder = with_fields(foreign_tokenizers.gpt2(tmp_path), "tokenizer_config.json", **{field: value})
    with pytest.raises(TokenizerError, match=f"tokenizer_config.json: {field}="):
        Tokenizer.load(folder)


def test_the_fields_of_published_folders_are_known(tmp_path):
    """Llama 2 and 3, Qwen2.5, Mistral, SmolLM2 and a vision-language model, as published on the Hub."""
    folder = foreign_tokenizers.gpt2(tmp_path)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    published = [
        {"model_max_length": 1000000000000000019884624838656, "padding_side": "right", "sp_model_kwargs": {}}
        | {"use_default_system_prompt": False, "legacy": False, "clean_up_tokenization_spaces": False},
        {"model_input_names": ["input_ids", "attention_mask"], "clean_up_tokenization_spaces": True},
        {"errors": "replace", "split_special_tokens": False, "add_bos_token": False, "add_prefix_space": False},
        {"spaces_between_special_tokens": False, "truncation_side": "left", "extra_special_tokens": {}},
        {"name_or_path": "gpt2", "special_tokens_map_file": None, "vocab_size": None, "tokenizer_file": "x"},
        {"image_token": "<image>", "boi_token": {"content": "<boi>", **flags}, "processor_class": "PaliProcessor"},
    ]
    for fields in published:
        Tokenizer.load(with_fields(foreign_tokenizers.gpt2(tmp_path), "tokenizer_config.json", **fields))
    specials = {"eos_token": {"content": "<|endoftext|>", **flags}, "additional_special_tokens": ["<|x|>"]}
    Tokenizer.load(with_fields(folder, "special_tokens_map.json", **specials, image_token="<image>"))


def test_templates_other_than_the_default_are_logged_as_ignored(tmp_path, caplog):
    named = [{"name": "tool_use", "template": "{{ no }}"}, {"name": "default", "template": foreign_tokenizers.VICUNA}]
    listed = with_fields(foreign_tokenizers.gpt2(tmp_path / "listed"), "tokenizer_config.json", chat_template=named)
    apart = foreign_tokenizers.gpt2(tmp_path / "apart", foreign_tokenizers.VICUNA)
    (apart / "additional_chat_templates").mkdir()
    (apart / "additional_chat_templates/tool_use.jinja").write_text("{{ no }}", "utf-8")
    for folder in (listed, apart):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert Tokenizer.load(folder).chat_template == foreign_tokenizers.VICUNA
        assert f"{folder}: using the default chat template; ignoring: tool_use" in caplog.text


@pytest.mark.parametrize(
    "template",
    [
        5,
        ["x"],
        [{"name": "default"}],
        {"default": 3},
        [{"name": 1, "template": "x"}, {"name": "default", "template": "x"}],
        [{"name": None, "template": "x"}, {"name": "tool_use", "template": "x"}],
        [{"name": ["default"], "template": "x"}],
    ],
)
def test_a_template_that_is_not_text_is_refused(tmp_path, template):
    folder = with_fields(foreign_tokenizers.gpt2(tmp_path), "tokenizer_config.json", chat_template=template)
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json: expected chat_template"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("part", "value", "told"),
    [
        ("model", {"dropout": 0.5}, "model.dropout=0.5"),  # different ids each time
        ("model", {"continuing_subword_prefix": "##"}, "is not a valid tokenizer"),  # the package panics
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": None}, "is not a valid tokenizer"),
        ("decoder", {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}, "decoder"),
        ("decoder", {"type": "Replace", "pattern": {"String": "a"}, "content": "o"}, "decoder"),
        ("decoder", {"type": "Strip", "content": "x", "start": 1, "stop": 0}, "decoder"),
        ("decoder", {"type": "Strip", "content": " ", "start": 0, "stop": 1}, "decoder"),
    ],
)
def test_an_unsupported_part_of_tokenizer_json_is_refused_by_name(tmp_path, part, value, told):
    folder = foreign_tokenizers.gpt2(tmp_path)
    file = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    if part == "decoder":
        file["decoder"] = {"type": "Sequence", "decoders": [file["decoder"], value]}
    else:
        file[part] = (file[part] or {}) | value
    foreign_tokenizers.write_json(folder / "tokenizer.json", file)
    with pytest.raises(TokenizerError, match=rf"(?s){folder}.*{re.escape(told)}"):
        Tokenizer.load(folder)


def test_a_code_llama_is_read_as_the_llama_that_transformers_makes_of_it(transformers, published, tmp_path):
    folder = foreign_tokenizers.converted(
        tmp_path, published["llama2"], foreign_tokenizers.VICUNA, tokenizer_class="CodeLlamaTokenizer"
    )
    ours, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in foreign_tokenizers.texts(200, seed=3):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False, split_special_tokens=True), text


@pytest.mark.parametrize(
    "template", ["\ud800{{ messages }}", [{"name": "default", "template": "\udfff"}]], ids=["text", "named"]
)
def test_a_template_with_half_a_surrogate_pair_is_refused_by_name(tmp_path, template):
    folder = foreign_tokenizers.gpt2(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json: chat_template: .* half of a surrogate pair"):
        Tokenizer.load(folder)
