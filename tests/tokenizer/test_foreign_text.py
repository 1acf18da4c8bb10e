"""Foreign tokenizers: text → ids → text, as in transformers."""

import json
import pickle

import pytest

from components.tokenizer.codec import TokenizerError
from components.tokenizer.tokenizer import StreamDecoder, Tokenizer
from tests.kit import foreign_tokenizers

NAMES = ["qwen2", "llama3", "gpt2", "llama2", "llama2-legacy", "llama2-unspaced", "zephyr", "mistral-legacy"]
MIXED = foreign_tokenizers.texts(1000)


@pytest.fixture(scope="module", params=NAMES)
def folder(request, published):
    return published[request.param]


@pytest.fixture(scope="module")
def ours(folder) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    """The folder as transformers' AutoTokenizer reads it."""
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)


def test_a_thousand_mixed_texts_have_transformers_ids(ours, theirs):
    for text in MIXED:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False, split_special_tokens=True)


def test_their_decoded_texts_are_transformers_too(ours, theirs):
    for text in MIXED:
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids)


def test_no_text_produces_a_special_id(ours):
    special = set(ours.codec.special_ids.values())
    for text in [*MIXED, *ours.codec.special_ids]:
        assert not special & set(ours.encode(text))


def test_the_vocabulary_ends_with_its_highest_id(ours, theirs):
    assert ours.vocab_size == max(theirs.get_vocab().values()) + 1
    assert ours.codec.tokens == theirs.convert_ids_to_tokens(list(range(ours.vocab_size)))


def test_a_batch_has_the_ids_of_its_texts(ours):
    assert ours.encode_batch(MIXED[:50], num_threads=2) == [ours.encode(text) for text in MIXED[:50]]


def test_a_stream_gives_in_all_what_decode_gives(ours):
    for text in MIXED[:200]:
        ids = [*ours.document(text), *ours.encode(text)]
        for skip_special in (True, False):
            decoder = StreamDecoder(ours, skip_special)
            pieces = [decoder.push(i) for i in ids] + [decoder.flush()]
            assert "".join(pieces) == ours.decode(ids, skip_special)


def test_a_stream_that_continues_a_text_keeps_its_first_space(published):
    llama2 = Tokenizer.load(published["llama2"])
    ids = llama2.encode("dax lives")
    after = StreamDecoder(llama2, begins=False)
    assert "".join(map(after.push, ids)) == " dax lives"


def test_a_worker_process_can_be_given_one(ours):
    other = pickle.loads(pickle.dumps(ours))
    assert (other.fingerprint, other.stop_ids) == (ours.fingerprint, ours.stop_ids)
    assert other.encode(MIXED[7]) == ours.encode(MIXED[7])


def test_half_a_surrogate_pair_is_refused_with_its_position(ours):
    with pytest.raises(TokenizerError, match=r"character 2 is '\\ud83d', half of a surrogate pair"):
        ours.encode("ab\ud83d")
    with pytest.raises(TokenizerError, match="text 1: character 0"):
        ours.encode_batch(["a", "\udc00"])


@pytest.mark.parametrize("name", ["llama3", "gpt2"])
def test_byte_level_pieces_give_any_text_back_and_their_bytes_add_up(published, name):
    tokenizer = Tokenizer.load(published[name])
    for text in MIXED:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert sum(tokenizer.byte_lengths[i] for i in ids) == len(text.encode())


def test_a_tokenizer_that_normalizes_gives_the_normal_form_back(published):
    qwen2 = Tokenizer.load(published["qwen2"])  # NFC
    assert qwen2.decode(qwen2.encode("e\u0301")) == "é"


def test_a_space_put_before_a_text_counts_as_one_byte_more(published):
    llama2, unspaced = Tokenizer.load(published["llama2"]), Tokenizer.load(published["llama2-unspaced"])
    for text in filter(None, foreign_tokenizers.texts(300, without=("\u2581",))):
        for tokenizer, more in ((llama2, not text.startswith(" ")), (unspaced, False)):
            ids = tokenizer.encode(text)
            assert sum(tokenizer.byte_lengths[i] for i in ids) == len(text.encode()) + more


def test_specials_have_no_bytes_and_added_tokens_their_own(published):
    qwen2 = Tokenizer.load(published["qwen2"])
    assert [qwen2.byte_lengths[i] for i in qwen2.codec.special_ids.values()] == [0, 0, 0]
    assert qwen2.byte_lengths[-1] == len("<tool_call>")
    assert qwen2.encode("<tool_call>") == [qwen2.vocab_size - 1]  # not special, so ordinary text can contain it


def test_a_document_is_between_bos_and_eos_or_has_no_bos(published):
    llama2, qwen2 = Tokenizer.load(published["llama2"]), Tokenizer.load(published["qwen2"])
    assert llama2.document("dax") == [1, *llama2.encode("dax"), 2]
    assert (qwen2.bos_id, qwen2.beginning) == (None, [])
    assert qwen2.document("dax") == [*qwen2.encode("dax"), qwen2.eos_id]


def test_a_merge_that_spells_a_special_is_not_taken(published, tmp_path):
    definition = json.loads((published["gpt2"] / "tokenizer.json").read_text("utf-8"))
    vocab, merges = definition["model"]["vocab"], definition["model"]["merges"]
    definition["added_tokens"], count = [], len(vocab)
    vocab |= {"qz": count, "qzx": count + 1}
    merges += [["q", "z"], ["qz", "x"]]
    foreign_tokenizers.write_json(tmp_path / "tokenizer.json", definition)
    foreign_tokenizers.write_json(tmp_path / "tokenizer_config.json", {"eos_token": "qzx"})
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_id == count + 1
    assert tokenizer.encode("qzx") == [count, vocab["x"]]
