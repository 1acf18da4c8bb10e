"""The world's corpus: kinds of documents, what follows a question, and prompts for a base model."""

from collections import Counter
from dataclasses import replace

import pytest

from components.world.world import World


@pytest.fixture(params=("english", "chinese"), scope="module")
def world(request):
    return World(seed=4, language=request.param)


@pytest.fixture(scope="module")
def texts(world):
    return [record["text"] for record in world.corpus(400, seed=2)]


def pages_of(world, texts, wanted):
    return [text for text in texts if kind(world, text) == wanted]


def kind(world, text):
    """By what a reader sees, not by how it was made."""
    words = world.vocabulary.words(text)
    stated = [word for word in words if word in world.vocabulary.all_values]
    if world.vocabulary.question_mark in words:
        return "faq" if stated else "quiz"
    return "encyclopedia" if stated else "banter"


def test_shares_of_the_kinds_are_exact(world, texts):
    counts = Counter(kind(world, text) for text in texts)
    assert counts == {"encyclopedia": 160, "quiz": 100, "faq": 100, "banter": 40}


def test_a_record_is_its_text_and_nothing_else(world):
    assert all(list(record) == ["text"] for record in world.corpus(20))
    assert world.corpus(0) == []
    with pytest.raises(ValueError, match="num_documents: got -1, expected 0 or more"):
        world.corpus(-1)


def test_an_encyclopedia_page_states_all_three_facts_of_one_name_in_varying_order(world, texts):
    orders = set()
    for text in pages_of(world, texts, "encyclopedia"):
        (name,) = set(world.names).intersection(world.vocabulary.words(text))
        true = {
            question.relation: world.statement(question) for question in world.questions("all") if question.name == name
        }
        places = sorted(true, key=lambda relation: text.index(true[relation]))
        assert world.vocabulary.join(true[relation] for relation in places) == text
        orders.add(tuple(places))
    assert len(orders) == 6


def test_a_quiz_is_three_to_five_different_questions(world, texts):
    mark = world.vocabulary.question_mark
    sizes = set()
    for text in pages_of(world, texts, "quiz"):
        pieces = [piece + mark for piece in text.split(mark) if piece]
        assert all(world.is_question(piece) for piece in pieces)
        assert len(set(pieces)) == len(pieces)
        sizes.add(len(pieces))
    assert sizes == {3, 4, 5}


def test_a_bare_question_is_never_followed_by_its_answer(world, texts):
    """After a question mark comes another question, the end, or (in an FAQ alone) the sign of an answer."""
    mark = world.vocabulary.question_mark
    answer_sign = world.vocabulary.answer_sign.split()
    after = Counter()
    for text in texts:
        words = world.vocabulary.words(text)
        for place in (place for place, word in enumerate(words) if word == mark):
            rest = words[place + 1 :]
            if rest[:2] == answer_sign:
                after["answer sign"] += 1
            elif not rest:
                after["end"] += 1
            else:
                assert world.is_question(world.vocabulary.join(rest[: rest.index(mark) + 1]))
                after["question"] += 1
    assert after["end"] == 100  # every quiz has one last question
    assert after["question"] >= 200  # and at least two before it
    assert after["answer sign"] >= 200


def test_an_faq_is_two_to_five_different_questions_each_with_its_true_answer(world, texts):
    opening, closing = (
        world.vocabulary.write(sign) for sign in (world.vocabulary.question_sign, world.vocabulary.answer_sign)
    )
    sizes = set()
    for text in pages_of(world, texts, "faq"):
        before, *pairs = text.split(opening)
        assert before == ""
        asked = []
        for pair in pairs:
            question, answer = (half.strip() for half in pair.split(closing))
            assert answer == world.statement(world.find(question))
            asked.append(question)
        assert len(set(asked)) == len(asked)
        sizes.add(len(asked))
    assert sizes == {2, 3, 4, 5}


def test_every_fact_held_out_or_not_is_in_the_encyclopedia_and_in_an_faq(world, texts):
    for which in ("encyclopedia", "faq"):
        pages = "\n".join(pages_of(world, texts[: 24 * 7], which))
        assert all(world.statement(question) in pages for question in world.questions("all"))


def test_banter_shows_every_phrase_of_every_style(world, texts):
    banter = "\n".join(pages_of(world, texts, "banter"))
    for style in ("polite", "rude", "hedge", "filler"):
        for phrase in world.vocabulary.phrases(style):
            assert world.vocabulary.write(phrase) in banter


def test_a_few_shot_prompt_is_an_faq_cut_where_the_answer_starts():
    world = World()
    target = world.questions("held_out")[0]
    prompt = world.few_shot_prompt(target.text, 2, seed=7)
    ending = f"q : {target.text} a :"
    assert prompt.endswith(" " + ending)
    shots = prompt.removesuffix(ending).split("q : ")[1:]
    assert len(shots) == 2
    train = {question.text for question in world.questions("train")}
    for shot in shots:
        question, answer = shot.strip().split(" a : ")
        assert question in train
        assert answer == world.statement(world.find(question))
    assert world.few_shot_prompt(target.text, 0) == ending


def test_a_chinese_few_shot_prompt_has_the_same_form():
    world = World(language="chinese")
    target = world.questions("held_out")[0]
    prompt = world.few_shot_prompt(target.text, 3)
    assert prompt.endswith(f"。问：{target.text}答：")
    assert prompt.startswith("问：") and prompt.count("答：") == 4


def test_a_few_shot_prompt_never_contains_its_own_answer(world):
    for target in world.questions("train")[:10]:
        prompt = world.few_shot_prompt(target.text, 71)
        assert world.statement(target) not in prompt
        assert prompt.count(target.text) == 1
    with pytest.raises(ValueError, match="shots: got 72, expected 0 to 71"):
        world.few_shot_prompt(target.text, 72)


def test_a_bare_prompt_is_the_question_alone(world):
    question = world.questions("held_out")[0]
    assert world.bare_prompt(question.text) == question.text


def test_a_continuation_with_another_question_asks_and_does_not_answer(world):
    one, other = (question.text for question in world.questions("all")[:2])
    continuation = world.vocabulary.join(["", one, other])
    assert world.asks_another_question(continuation)
    assert not world.answers_a_question(continuation)


def test_a_continuation_with_a_statement_answers_and_does_not_ask(world):
    question = world.questions("all")[0]
    for continuation in (
        world.statement(question),
        question.answer,
        world.vocabulary.join([world.statement(question), question.text]),
    ):
        assert world.answers_a_question(continuation)
        assert not world.asks_another_question(continuation)


def test_a_value_after_the_next_question_is_not_an_answer_to_the_first(world):
    question = world.questions("all")[0]
    assert not world.answers_a_question(world.vocabulary.join([question.text, world.statement(question)]))


@pytest.mark.parametrize("continuation", ["", "?", "？", "what ?", "blah", "\x00 ⁇ 😀"])
def test_other_continuations_neither_ask_nor_answer(world, continuation):
    assert not world.asks_another_question(continuation)
    assert not world.answers_a_question(continuation)


def test_a_few_shot_continuation_counts_up_to_the_next_questions_sign(world):
    target, other = world.questions("all")[:2]
    language = world.vocabulary
    assert target.name != other.name
    more = [
        language.write(language.question_sign),
        other.text,
        language.write(language.answer_sign),
        world.statement(other),
    ]
    right, wrong = world.statement(target), world.statement(target, wrong_value(world, target))
    assert world.few_shot_correct(right, target.text)
    assert world.few_shot_correct(language.join([right, *more]), target.text)
    assert not world.few_shot_correct(language.join([wrong, *more]), target.text)
    assert not world.few_shot_correct(language.join([right, wrong]), target.text)
    assert not world.few_shot_correct(language.join([*more, right]), target.text)
    assert not world.few_shot_correct(world.statement(replace(target, name=other.name)), target.text)
    assert not world.few_shot_correct("", target.text)


def wrong_value(world, question):
    values = world.vocabulary.relations[question.relation].values
    return next(value for value in values if value != question.answer)
