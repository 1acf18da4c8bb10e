"""Foreign tokenizer folders: what is read from which file, and what is written back."""

import itertools
import json
import logging
import sys

import pytest

from components.tokenizer.codec import TokenizerError
from components.tokenizer.tokenizer import Tokenizer
from tests.kit import foreign_tokenizers

TALK = [
    {"role": "user", "content": "Where does dax live ?"},
    {"role": "assistant", "content": "In cave ."},
    {"role": "user", "content": "今天天气很好 😀\t!"},
]
NAMES = [
    "qwen2",
    "llama3",
    "gpt2",
    "gpt2-vicuna",
    "llama2",
    "llama2-legacy",
    "llama2-unspaced",
    "zephyr",
    "mistral",
    "mistral-legacy",
]


def config_of(folder) -> dict:
    return json.loads((folder / "tokenizer_config.json").read_text("utf-8"))


def changed(folder, **values):
    """The folder with other values in tokenizer_config.json; None removes a key."""
    config = {name: value for name, value in (config_of(folder) | values).items() if value is not None}
    foreign_tokenizers.write_json(folder / "tokenizer_config.json", config)
    return folder


# transformers reads whatever is next to a Qwen2 model as Qwen2's own, so only that one is tried there
BESIDE = [*itertools.product(NAMES, [None, "llama", "mistral"]), ("qwen2", "qwen2")]


@pytest.mark.parametrize(("name", "model_type"), BESIDE)
def test_a_saved_one_is_the_same_to_us_and_to_transformers(published, tmp_path, name, model_type):
    transformers = pytest.importorskip("transformers")
    original = Tokenizer.load(published[name])
    original.save(tmp_path)
    if model_type:  # a model in the same folder must not change how it is read
        foreign_tokenizers.write_json(tmp_path / "config.json", {"model_type": model_type})
    again, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    before = transformers.AutoTokenizer.from_pretrained(published[name])
    assert again.fingerprint == original.fingerprint
    assert again.render(TALK[:2]) == original.render(TALK[:2])
    for text in foreign_tokenizers.texts(300, seed=5):
        ids = original.encode(text)
        assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == ids
        assert theirs.encode(text) == before.encode(text)  # with the special tokens that transformers adds
    assert theirs.apply_chat_template(TALK[:2], return_dict=False) == original.render(TALK[:2]).ids
    prompt = theirs.apply_chat_template(TALK, add_generation_prompt=True, return_dict=False)
    assert prompt == original.render_prompt(TALK)
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (
        original.pad_id,
        original.bos_id,
        original.eos_id,
    )


def test_saving_again_writes_the_same_bytes(published, tmp_path):
    Tokenizer.load(published["llama2"]).save(tmp_path / "one")
    Tokenizer.load(tmp_path / "one").save(tmp_path / "two")
    names = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"}
    assert {file.name for file in (tmp_path / "one").iterdir()} == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (tmp_path / "one" / "tokenizer.model").read_bytes() == (published["llama2"] / "tokenizer.model").read_bytes()


def test_code_of_the_folder_is_not_copied(tmp_path):
    folder = changed(foreign_tokenizers.gpt2(tmp_path / "from"), auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    Tokenizer.load(folder).save(tmp_path / "to")
    assert "auto_map" not in config_of(tmp_path / "to")


def test_one_saved_by_transformers_is_the_one_made_here(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path / "ours")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert not (tmp_path / "theirs" / "tokenizer.model").exists()
    again = Tokenizer.load(tmp_path / "theirs")
    for text in foreign_tokenizers.texts(1000, without=("\u2581",)):
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode(again.encode(text)) == text
    assert again.render(TALK[:2]) == tokenizer.render(TALK[:2])
    assert (again.pad_id, again.bos_id, again.eos_id, again.end_id) == (0, 2, 3, 7)


def test_the_fingerprint_tells_another_template_and_another_special(tmp_path):
    one = Tokenizer.load(foreign_tokenizers.gpt2(tmp_path / "one"))
    other = Tokenizer.load(foreign_tokenizers.gpt2(tmp_path / "other", foreign_tokenizers.VICUNA))
    padded = Tokenizer.load(changed(foreign_tokenizers.gpt2(tmp_path / "padded"), pad_token="!"))
    assert len({one.fingerprint, other.fingerprint, padded.fingerprint}) == 3


def test_special_tokens_can_be_strings_or_objects_in_either_file(tmp_path):
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    eos = {"__type": "AddedToken", "content": "<|endoftext|>"} | flags
    objects = changed(foreign_tokenizers.gpt2(tmp_path / "a"), eos_token=eos)
    mapped = foreign_tokenizers.gpt2(tmp_path / "b")
    foreign_tokenizers.write_json(
        mapped / "special_tokens_map.json", {"eos_token": {"content": "<|endoftext|>"} | flags}
    )
    assert Tokenizer.load(objects).eos_id == Tokenizer.load(mapped).eos_id == Tokenizer.load(mapped).vocab_size - 1


@pytest.mark.parametrize("where", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens_decoder"])
def test_a_special_token_named_only_in_other_files_gets_transformers_id(tmp_path, where):
    transformers = pytest.importorskip("transformers")
    folder = foreign_tokenizers.gpt2(tmp_path)
    count = Tokenizer.load(folder).vocab_size
    if where == "tokenizer_config.json":
        changed(folder, pad_token="[PAD]", additional_special_tokens=["<|x|>"])
    elif where == "special_tokens_map.json":
        foreign_tokenizers.write_json(folder / where, {"pad_token": "[PAD]", "additional_special_tokens": ["<|x|>"]})
    else:
        flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
        names = ["<|endoftext|>", "[PAD]", "<|x|>"]
        added = {str(count - 1 + n): {"content": name} | flags for n, name in enumerate(names)}
        changed(folder, pad_token="[PAD]", added_tokens_decoder=added)
    tokenizer, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_id, tokenizer.vocab_size) == (count, count + 2) == (theirs.pad_token_id, len(theirs))
    assert tokenizer.codec.special_ids["<|x|>"] == theirs.convert_tokens_to_ids("<|x|>") == count + 1
    assert tokenizer.encode("[PAD]<|x|>") == theirs.encode("[PAD]<|x|>", split_special_tokens=True)


def test_padding_and_cutting_that_the_file_asks_for_are_left_out(tmp_path):
    folder = foreign_tokenizers.gpt2(tmp_path)
    definition = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    definition["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "direction": "Right", "stride": 0}
    foreign_tokenizers.write_json(folder / "tokenizer.json", definition)
    assert len(Tokenizer.load(folder).encode("dax lives in cave")) > 2


@pytest.mark.parametrize("place", ["list", "chat_template.jinja", "additional_chat_templates/default.jinja"])
def test_the_default_of_several_templates_is_taken_wherever_it_lies(published, tmp_path, place):
    folder = foreign_tokenizers.gpt2(tmp_path, foreign_tokenizers.ZEPHYR)
    if place == "list":
        named = [
            {"name": "tool_use", "template": "{{ no }}"},
            {"name": "default", "template": foreign_tokenizers.VICUNA},
        ]
        changed(folder, chat_template=named)
    else:
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(foreign_tokenizers.VICUNA, "utf-8")
    assert Tokenizer.load(folder).render(TALK[:2]) == Tokenizer.load(published["gpt2-vicuna"]).render(TALK[:2])


def test_a_list_without_a_default_template_is_refused(tmp_path):
    folder = changed(foreign_tokenizers.gpt2(tmp_path), chat_template=[{"name": "tool_use", "template": "{{ no }}"}])
    with pytest.raises(TokenizerError, match=r"chat_template has \['tool_use'\], none named default"):
        Tokenizer.load(folder)


def test_a_default_template_is_saved_and_not_warned_of_again(published, tmp_path, caplog):
    Tokenizer.load(published["gpt2"]).save(tmp_path)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        Tokenizer.load(tmp_path)
    assert caplog.text == ""


def test_a_missing_package_is_named_with_its_pip_line(published, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TokenizerError, match=r"pip install -c \S+ -e '?\S+\[hf\]'?$"):
        Tokenizer.load(published["gpt2"])


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("tokenizer.json", b"", "tokenizer.json is not JSON"),
        ("tokenizer.json", b"version https://git-lfs", "tokenizer.json is not JSON"),
        ("tokenizer.json", b"{}", "tokenizer.json: expected a tokenizer with model.vocab"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 0}}}', "tokenizer.json is not a valid tokenizer"),
        ("tokenizer_config.json", b'{"chat_', "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", b"{}", "no eos_token in tokenizer_config.json or special_tokens_map.json"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not UTF-8"),
        ("generation_config.json", b'{"eos_token_id": [9999]}', "eos_token_id 9999 is not an id of the tokenizer"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, complaint):
    folder = foreign_tokenizers.gpt2(tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=complaint):
        Tokenizer.load(folder)


def test_pieces_that_do_not_represent_bytes_are_refused(tmp_path):
    folder = foreign_tokenizers.gpt2(tmp_path)
    definition = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    definition["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    foreign_tokenizers.write_json(folder / "tokenizer.json", definition)
    with pytest.raises(TokenizerError, match="the decoder is WordPiece, expected one that yields bytes: ByteLevel"):
        Tokenizer.load(folder)


def test_a_sentencepiece_model_that_is_not_bpe_needs_its_tokenizer_json(tmp_path):
    folder = foreign_tokenizers.llama2(tmp_path)
    (folder / "tokenizer.model").write_bytes(
        foreign_tokenizers.sentencepiece_model(model_type="unigram", vocab_size=400)
    )
    with pytest.raises(TokenizerError, match="tokenizer.model is not BPE.*expected a tokenizer.json"):
        Tokenizer.load(folder)
