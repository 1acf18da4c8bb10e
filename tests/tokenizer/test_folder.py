"""The tokenizer's files."""

import io
import json
import pickle

import pytest
import sentencepiece

from components.tokenizer.codec import TokenizerError
from components.tokenizer.exact import ExactCodec
from components.tokenizer.template import DEFAULT_TEMPLATE
from components.tokenizer.tokenizer import Tokenizer
from tests.kit import foreign_tokenizers

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  where does dax live ?\n"},
    {"role": "assistant", "content": "dax lives in cave ."},
    {"role": "user", "content": "今天天气很好 😀\t!"},
]


@pytest.fixture
def folder(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "folder")
    return tmp_path / "new" / "folder"


def same(one: Tokenizer, other: Tokenizer) -> bool:
    return one.fingerprint == other.fingerprint and one.render(TALK) == other.render(TALK)


def test_a_saved_tokenizer_loads_the_same(tokenizer, folder):
    assert same(Tokenizer.load(folder), tokenizer)


def test_saving_again_writes_the_same_bytes(folder, tmp_path):
    Tokenizer.load(folder).save(tmp_path / "again")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_worker_process_can_be_given_one(tokenizer):
    assert same(pickle.loads(pickle.dumps(tokenizer)), tokenizer)


def test_the_fingerprint_tells_another_template(tokenizer):
    other = Tokenizer(tokenizer.codec, DEFAULT_TEMPLATE.replace("<|user|>", "<|user|>\n"))
    assert other.fingerprint != tokenizer.fingerprint
    assert len(tokenizer.fingerprint) == 64


def test_a_template_in_its_own_file_is_read(tokenizer, folder):
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (folder / "chat_template.jinja").write_text(config.pop("chat_template"), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    assert same(Tokenizer.load(folder), tokenizer)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer_config.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(TokenizerError, match=f"cannot read .*{name}: No such file.*stage=tokenizer"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("tokenizer.model", b"", "tokenizer.model.*not a SentencePiece model"),
        ("tokenizer.model", b"version https://git-lfs", "tokenizer.model.*not a SentencePiece model"),
        ("tokenizer_config.json", b'{"chat_', "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", b"\xff\xfe\xfd", "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", b"[" * 100_000, "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json: expected a JSON object, got list"),
        ("tokenizer_config.json", b"{}", "tokenizer_config.json has no chat_template"),
        ("tokenizer_config.json", b'{"chat_template": "{% if"}', "chat template.*not valid Jinja"),
    ],
)
def test_a_damaged_file_is_named(folder, name, content, complaint):
    (folder / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=complaint):
        Tokenizer.load(folder)


def test_half_a_model_is_refused(folder):
    model = (folder / "tokenizer.model").read_bytes()
    for kept in range(0, len(model), len(model) // 50):
        (folder / "tokenizer.model").write_bytes(model[:kept])
        with pytest.raises(TokenizerError, match=r"tokenizer\.model"):
            Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"add_dummy_prefix": True}, "does not restore text unchanged"),
        ({"normalization_rule_name": "nmt_nfkc"}, "does not restore text unchanged"),
        ({"remove_extra_whitespaces": True}, "does not restore text unchanged"),
        ({"byte_fallback": False}, "0 byte pieces, expected 256"),
        ({"pad_id": -1}, "no special piece for pad"),
    ],
)
def test_a_model_that_cannot_restore_text_is_refused(options, complaint):
    settings = {
        "model_type": "bpe",
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "pad_id": 3,
        "vocab_size": 300,
        "hard_vocab_limit": False,
        "control_symbols": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
        "minloglevel": 2,
    }
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["dax is red"] * 9), model_writer=written, **settings | options
    )
    with pytest.raises(TokenizerError, match=complaint):
        ExactCodec(written.getvalue())


@pytest.fixture
def theirs(folder):
    """The folder as transformers' AutoTokenizer reads it."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_transformers_has_the_same_specials(tokenizer, theirs):
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id) == (
        0,
        2,
        3,
        1,
    )
    assert theirs.get_vocab() == {piece: i for i, piece in enumerate(tokenizer.codec.tokens)}


def test_transformers_gives_the_same_ids_and_texts(tokenizer, theirs):
    looks_alike = [*tokenizer.codec.special_ids, *(f"x{name} " for name in tokenizer.codec.special_ids)]
    for text in [*foreign_tokenizers.texts(1000, without=("\u2581",)), *looks_alike]:
        ids = tokenizer.encode(text)
        assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == ids
        assert theirs.encode(text, split_special_tokens=True) == [2, *ids]
        assert theirs.decode(ids) == text


def test_transformers_renders_a_hundred_mixed_chats_the_same(tokenizer, theirs):
    specials = tuple(tokenizer.codec.special_ids)
    texts = foreign_tokenizers.texts(400, seed=1, without=("\u2581", *specials))
    for n in range(0, 400, 4):
        chat = [{"role": ("user", "assistant")[k % 2], "content": texts[n + k]} for k in range(4)]
        assert theirs.apply_chat_template(chat, return_dict=False) == tokenizer.render(chat).ids


def test_look_alikes_are_sanitized_by_transformers_on_request(tokenizer, theirs):
    for text in foreign_tokenizers.texts(100, seed=2, without=("\u2581", "\ue000", "\uf8fe0\uf8fe501\uf8ff")):
        chat = [{"role": "user", "content": text}]
        safe = theirs.apply_chat_template(chat, return_dict=False, sanitize_control_tokens=True)
        assert theirs.decode(safe) == tokenizer.decode(tokenizer.render(chat).ids, skip_special=False)
        assert sum(i < 8 for i in safe) == sum(i < 8 for i in tokenizer.render(chat).ids) == 3


@pytest.mark.parametrize("turns", [2, 3, 4])
def test_transformers_renders_the_same_chats(tokenizer, theirs, turns):
    assert theirs.chat_template == tokenizer.chat_template
    chat = theirs.apply_chat_template(TALK[:turns], return_dict=False)
    assert chat == tokenizer.render(TALK[:turns]).ids
    if turns % 2 == 0:
        prompt = theirs.apply_chat_template(TALK[:turns], add_generation_prompt=True, return_dict=False)
        assert prompt == tokenizer.render_prompt(TALK[:turns])
