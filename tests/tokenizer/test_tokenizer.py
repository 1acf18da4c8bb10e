"""Text → ids → text."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from components.tokenizer import exact
from components.tokenizer.codec import TokenizerError
from components.tokenizer.tokenizer import StreamDecoder

SPECIALS = {"<pad>": 0, "<unk>": 1, "<bos>": 2, "<eos>": 3}
TURNS = {"<|system|>": 4, "<|user|>": 5, "<|assistant|>": 6, "<|end|>": 7}
FRAGMENTS = [
    *SPECIALS,
    *TURNS,
    "<s>",
    "<0x0A>",
    " ",
    "    ",
    "\n",
    "\r\n",
    "\t",
    "\0",
    "\u2581",
    "\u2585",
    "\ufeff",
    "\x1c",
    "\ue000",
    "\ue0000\ue001",
    "dax",
    " lives",
    "天气",
    "é",
    "e\u0301",
    "ﬁ",
    "\u3000",
    "😀",
    "👩\u200d🚀",
]
any_text = st.text() | st.lists(st.sampled_from(FRAGMENTS)).map("".join)


@given(text=any_text)
@example(text=" \u2581 leading and trailing \u2581 \n\n")
def test_any_text_comes_back_exactly(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=any_text)
def test_a_vocabulary_of_bytes_gives_text_back_too(bytewise, text):
    assert bytewise.decode(bytewise.encode(text)) == text


@given(text=any_text)
def test_byte_lengths_add_up_to_the_bytes_of_the_text(tokenizer, text):
    assert sum(tokenizer.byte_lengths[i] for i in tokenizer.encode(text)) == len(text.encode())


@given(text=any_text)
def test_no_text_produces_a_special_id(tokenizer, text):
    assert min(tokenizer.encode(text), default=8) >= 8


def test_specials_have_the_first_eight_ids_and_no_bytes(tokenizer):
    assert tokenizer.codec.special_ids == SPECIALS | TURNS
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_id) == (0, 2, 3, 7)
    assert tokenizer.stop_ids == (7, 3)
    assert tokenizer.byte_lengths[:8] == [0] * 8
    assert set(tokenizer.byte_lengths[8:264]) == {1}
    assert len(tokenizer.byte_lengths) == tokenizer.vocab_size


def test_a_text_without_pieces_is_encoded_as_bytes(bytewise):
    a, space = 264, 265
    assert bytewise.encode("a X") == [a, space, 8 + ord("X")]
    assert bytewise.encode("é") == [8 + 0xC3, 8 + 0xA9]
    assert bytewise.encode("a\u2581a") == [a, 8 + 0xE2, 8 + 0x96, 8 + 0x81, a]
    assert bytewise.byte_lengths[a] == bytewise.byte_lengths[space] == 1


def test_every_line_end_is_one_byte_piece(tokenizer):
    newline = 8 + 0x0A
    assert tokenizer.encode("\n\n") == [newline, newline]
    assert tokenizer.encode("dax\nlives") == [*tokenizer.encode("dax"), newline, *tokenizer.encode("lives")]


def test_runs_of_spaces_have_pieces_of_their_own(tokenizer):
    assert len(tokenizer.encode("        return")) <= 3


@given(text=any_text, limit=st.integers(1, 8))
def test_a_text_that_is_cut_has_the_ids_of_the_whole(tokenizer, text, limit):
    text = text.replace("\u2581", "")  # which SentencePiece by itself cannot distinguish from a space
    whole = SentencePieceProcessor(model_proto=tokenizer.codec.model_bytes).encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "LONG_TEXT", limit)
        assert tokenizer.encode(text) == whole


def test_a_long_text_has_the_ids_of_the_whole(tokenizer):
    text = "dax lives in cave .  今天天气很好，我们去公园 return\n" * 300
    assert len(text) > 3 * exact.LONG_TEXT
    processor = SentencePieceProcessor(model_proto=tokenizer.codec.model_bytes)
    assert tokenizer.encode(text) == processor.encode(text)


@given(texts=st.lists(any_text))
def test_a_batch_has_the_ids_of_its_texts(tokenizer, texts):
    alone = [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts) == alone
    assert tokenizer.encode_batch(texts, num_threads=2) == alone


def test_a_document_is_between_bos_and_eos(bytewise):
    assert bytewise.document("aX") == [2, 264, 8 + ord("X"), 3]


def test_decode_leaves_specials_out_or_shows_them(bytewise):
    ids = [2, 5, 264, 7, 1, 3]
    assert bytewise.decode(ids) == "a"
    assert bytewise.decode(ids, skip_special=False) == "<bos><|user|>a<|end|><unk><eos>"


def test_bytes_that_are_not_utf8_become_replacement_characters(bytewise):
    assert bytewise.decode([264, 8 + 0xC3, 264]) == "a\ufffda"


def test_a_negative_id_is_refused_and_one_beyond_the_pieces_decodes_to_nothing(bytewise):
    with pytest.raises(TokenizerError, match=r"id -1 is outside the vocabulary \(0 to 265\)"):
        bytewise.decode([264, -1])
    assert bytewise.decode([264, 266, 10_000, 264]) == "aa"  # a model can have more rows than there are pieces


def test_half_a_surrogate_pair_is_refused_with_its_position(bytewise):
    with pytest.raises(TokenizerError, match=r"character 2 is '\\ud83d', half of a surrogate pair"):
        bytewise.encode("ab\ud83d")
    with pytest.raises(TokenizerError, match="text 1: character 0"):
        bytewise.encode_batch(["a", "\udc00"])


def test_a_value_that_is_not_a_string_is_refused(bytewise):
    with pytest.raises(TokenizerError, match="expected a string, got int"):
        bytewise.encode(5)


def test_a_stream_holds_back_unfinished_characters(bytewise):
    decoder = StreamDecoder(bytewise)
    smile = [8 + byte for byte in "😀".encode()]
    assert [decoder.push(i) for i in [264, *smile, 264]] == ["a", "", "", "", "😀", "a"]
    assert decoder.flush() == ""


def test_a_stream_that_ends_inside_a_character_flushes_a_replacement_character(bytewise):
    decoder = StreamDecoder(bytewise)
    assert decoder.push(8 + 0xF0) == ""
    assert decoder.flush() == "\ufffd"


@given(ids=st.lists(st.integers(0, 599) | st.integers(8 + 0x80, 8 + 0xFF)), skip_special=st.booleans())
def test_a_stream_gives_in_all_what_decode_gives(tokenizer, ids, skip_special):
    ids = [i % tokenizer.vocab_size for i in ids]
    decoder = StreamDecoder(tokenizer, skip_special)
    assert "".join([decoder.push(i) for i in ids] + [decoder.flush()]) == tokenizer.decode(ids, skip_special)
