"""Documents found by their words, before the question or behind a tool."""

import pytest

pytest.importorskip("bm25s")

from components.prompting.bm25 import Index
from components.prompting.retrieval import Retrieval
from components.prompting.technique import Step
from components.prompting.tools import NOTHING, lookup
from tests.kit.scripted import Scripted, question

FACTS = ["fev is red . fev lives in cave .", "toz is blue . toz lives in lake .", "naf eats fish ."]


def test_the_best_documents_precede_the_question():
    model = Scripted("fev is red .")
    (answer,), _ = Retrieval(FACTS, count=1)(model, question("what color is FEV ?"))
    assert model.queries[0].messages == [{"role": "user", "content": f"{FACTS[0]}\nwhat color is FEV ?"}]
    assert answer.trace == (Step("retrieval", FACTS[0]),)


def test_nothing_is_added_if_no_word_matches():
    model = Scripted("?")
    Retrieval(FACTS)(model, asked := question("hello !"))
    assert model.queries[0].messages == asked.messages


def test_documents_that_share_more_and_rarer_words_come_first_and_others_not_at_all():
    index = Index(FACTS)
    assert index.best("where does toz live in ?", 3) == [FACTS[1], FACTS[0]]  # the second only shares "in"
    assert index.best("where does toz live in ?", 1) == [FACTS[1]] and index.best("", 3) == []


def test_a_chinese_character_is_a_word():
    assert Index(["菲森 是 红色", "卡维住在城堡"]).best("卡维住在哪里", 1) == ["卡维住在城堡"]


def test_the_look_up_gives_one_document_or_says_that_there_is_none():
    tool = lookup(FACTS)
    assert tool.result({"text": "naf"}) == FACTS[2] and tool.result({"text": "xyz"}) == NOTHING


def test_settings_without_effect_are_refused():
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        Retrieval(FACTS, count=0)
    with pytest.raises(ValueError, match="expected at least one document with a word"):
        Retrieval(["", "."])
