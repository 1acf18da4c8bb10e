"""Stop texts across token boundaries, and which tokens are delivered with which text."""

import pytest

from components.serving.rows import Options, Request, Row, Scored


def delivered(tokenizer, text, *, stop=(), max_tokens=100, end=True):
    """(pieces, row) of a row that samples the tokens of a text, then the end of turn."""
    pieces = []
    options = Options(max_tokens=max_tokens, stop=tuple(stop), top=0)
    row = Row(Request([1], options, tokenizer, pieces.append, begins=False), 0)
    for token in [*tokenizer.encode(text), *([tokenizer.end_id] if end else [])]:
        if row.finish is None:
            row.push(Scored(token, -1.0))
    return pieces, row


def test_all_texts_together_are_the_answer(small_tokenizer):
    pieces, row = delivered(small_tokenizer, " anna lives in paris. naïve 日本")
    assert "".join(piece.text for piece in pieces) == " anna lives in paris. naïve 日本"
    assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert row.request.sampled == len(row.ids)


@pytest.mark.parametrize("stop", [["lives"], ["na li"], [" in paris", "ves"], ["a lives in", "es in"]])
def test_a_stop_text_is_found_across_tokens_and_never_shown(small_tokenizer, stop):
    text = " anna lives in paris"
    pieces, row = delivered(small_tokenizer, text, stop=stop, end=False)
    first = next(place for place in range(len(text)) if any(text.startswith(one, place) for one in stop))
    # of two stop texts the one that is complete first ends the answer
    complete = min(text.find(one) + len(one) for one in stop)
    shown = "".join(piece.text for piece in pieces)
    assert row.finish == "stop" and text.startswith(shown)
    assert not any(one in shown for one in stop)
    assert first <= len(shown) < complete


def test_text_that_could_become_a_stop_text_is_held_back_until_it_does_not(small_tokenizer):
    stop, pieces = " anna bo!", []
    row = Row(Request([1], Options(max_tokens=99, stop=(stop,)), small_tokenizer, pieces.append, begins=False), 0)
    said = ""
    for token in small_tokenizer.encode(" anna anna bob"):
        row.push(Scored(token, -1.0))
        said += small_tokenizer.decode([token])
        open_stop = max(length for length in range(len(stop)) if said.endswith(stop[:length]))
        assert "".join(piece.text for piece in pieces) == said[: len(said) - open_stop]


def test_tokens_come_with_their_text_and_those_of_the_stop_text_do_not(small_tokenizer):
    ids = small_tokenizer.encode(" anna lives in paris")
    pieces, _ = delivered(small_tokenizer, " anna lives in paris", stop=[" in"], end=False)
    tokens = [one.token for piece in pieces for one in piece.scored]
    assert tokens == ids[: len(tokens)]
    assert small_tokenizer.decode(tokens).startswith(" anna lives")
    assert " in" not in small_tokenizer.decode(tokens)


def test_an_answer_of_max_tokens_is_cut(small_tokenizer):
    pieces, row = delivered(small_tokenizer, " anna lives in paris", max_tokens=2, end=False)
    assert pieces[-1].finish == "length" and len(row.ids) == 2


def test_a_character_that_is_never_completed_is_replaced(small_tokenizer):
    pieces = []
    row = Row(Request([1], Options(max_tokens=1), small_tokenizer, pieces.append, begins=False), 0)
    row.push(Scored(small_tokenizer.codec.byte_ids[0xE6], -1.0))
    assert [piece.text for piece in pieces] == ["�"]
