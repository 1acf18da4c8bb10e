"""Text → a vocabulary."""

import logging
import re

import pytest

from components.tokenizer.codec import TokenizerError
from components.tokenizer.train import measure, train

WORLD = ["dax is red . dax lives in cave . dax eats fish .", "what color is dax ? red ."] * 10


def test_the_number_of_threads_does_not_change_a_byte():
    models = [train(WORLD, vocab_size=330, num_threads=number).codec.model_bytes for number in (1, 2, 5)]
    assert models[0] == models[1] == models[2]


def test_other_text_gives_another_fingerprint():
    other = [*WORLD, "wug " * 99]
    assert train(WORLD, vocab_size=330).fingerprint != train(other, vocab_size=330).fingerprint


def test_the_vocabulary_has_the_requested_size_if_the_text_allows():
    assert train(WORLD, vocab_size=330).vocab_size == 330


def test_a_small_corpus_gives_the_merges_it_has(caplog):
    with caplog.at_level(logging.INFO):
        trained = train(["ab ab"], vocab_size=512)
    assert trained.codec.tokens[264:] == ["ab", "\u2581ab", "\u2581a", "a", "b", "\u2581"]
    assert "270 pieces, fewer than vocab_size 512" in caplog.text


def test_a_vocabulary_size_that_is_too_small_is_refused_naming_the_smallest():
    with pytest.raises(TokenizerError, match="vocab_size 100 is too small") as caught:
        train(["abc abc"], vocab_size=100)
    assert re.search(r"at least (\d+)", str(caught.value))[1] == str(8 + 256 + len("abc "))
    assert train(["abc abc"], vocab_size=268).vocab_size == 268


@pytest.mark.parametrize("texts", [[], [""], ["\n\n", "\r\n"]])
def test_no_text_is_refused(texts):
    with pytest.raises(TokenizerError, match="no text to train"):
        train(texts, vocab_size=300)


def test_one_string_instead_of_many_is_refused():
    with pytest.raises(TokenizerError, match="put it in a list"):
        train("dax is red", vocab_size=300)


def test_half_a_surrogate_pair_is_refused_with_the_texts_number():
    with pytest.raises(TokenizerError, match="training text 1: character 3"):
        train(["dax", "red\udcff"], vocab_size=300)


@pytest.mark.parametrize("between", [" ", "\n"])
def test_the_end_of_a_long_text_is_learned_from(between):
    start = between.join(["dax"] * 3000)  # 12 kB: SentencePiece by itself drops lines over 4192 bytes
    assert "\u2581wug" in train([start + " wug" * 100], vocab_size=400).codec.tokens


def test_a_long_text_is_cut_between_words_only():
    joined, apart = [" daxwug" * 500], [" daxwug"] * 500
    assert train(joined, vocab_size=400).fingerprint == train(apart, vocab_size=400).fingerprint


def test_a_long_text_without_spaces_is_learned_from():
    assert "天气" in train(["天气" * 5000], vocab_size=268).codec.tokens


def test_characters_that_sentencepiece_reserves_cost_no_text():
    for mark in "\u2581\u2585\0":
        assert "wug" in train([f"{mark}wug{mark}"] * 9, vocab_size=400).codec.tokens


def test_a_corpus_without_spaces_still_leaves_a_piece_for_them():
    chinese = train(["今天天气很好"], vocab_size=300)
    assert chinese.decode(chinese.encode(" 今天  red ")) == " 今天  red "
    assert "\u2581" in chinese.codec.tokens


def test_names_of_specials_in_the_corpus_are_ordinary_text():
    trained = train(["the <unk> of <|end|>"] * 99, vocab_size=400)
    last_byte_piece = 263
    assert min(trained.encode("<unk><|end|>")) > last_byte_piece


def test_measures_follow_their_formulas():
    trained = train(["ab ab"], vocab_size=512)
    # "ab" "▁ab" "▁" and two bytes for é, one for the line end: 6 tokens, 9 bytes, 3 words
    assert measure(trained, ["ab ab ", "é\n"]) == {
        "bytes_per_token": 9 / 6,
        "fertility": 6 / 3,
        "byte_fallback_share": 2 / 6,
        "unknown_share": 0.0,
    }


def test_measuring_no_text_is_refused(tokenizer):
    with pytest.raises(TokenizerError, match="no text to measure"):
        measure(tokenizer, [""])
