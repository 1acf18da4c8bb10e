"""The world's pretraining text, in which a bare question is followed by more questions, never by its answer."""

import random

from components.world.facts import Facts, Question
from components.world.randomness import Deck, check_count
from components.world.vocabulary import STYLES

# each entry is one in every twenty documents: encyclopedia 40%, quiz 25%, FAQ 25%, banter 10%
KINDS = ("encyclopedia",) * 8 + ("quiz",) * 5 + ("faq",) * 5 + ("banter",) * 2
QUIZ_QUESTIONS = (3, 5)
FAQ_PAIRS = (2, 5)
BANTER_PHRASES = (3, 6)


def corpus(facts: Facts, num_documents: int, seed: int) -> list[dict[str, str]]:
    """num_documents text records; a longer corpus starts with the shorter one of the same seed.

    The proportions of kinds are exact in every twenty documents, and names and questions take turns: with
    num_names * 7 documents (24 names or more) every fact is stated by the encyclopedia and by an FAQ.
    """
    check_count("num_documents", num_documents, 0)
    rng = facts.rng("corpus", seed)
    kinds = Deck(range(len(KINDS)), rng)
    names = Deck(facts.names, rng)
    asked, answered = (Deck(facts.questions("all"), rng) for _ in range(2))
    records = []
    for _ in range(num_documents):
        kind = KINDS[kinds.take(1)[0]]
        if kind == "encyclopedia":
            text = encyclopedia(facts, names.take(1)[0], rng)
        elif kind == "quiz":
            text = facts.vocabulary.join(one.text for one in asked.take(rng.randint(*QUIZ_QUESTIONS)))
        elif kind == "faq":
            text = faq(facts, answered.take(rng.randint(*FAQ_PAIRS)))
        else:
            text = banter(facts, rng)
        records.append({"text": text})
    return records


def encyclopedia(facts: Facts, name: str, rng: random.Random) -> str:
    """All facts about a name, in random order."""
    about = [question for question in facts.questions("all") if question.name == name]
    return facts.vocabulary.join(facts.statement(question) for question in rng.sample(about, len(about)))


def faq(facts: Facts, questions: list[Question]) -> str:
    """Questions with their true answers, each announced by its sign."""
    return facts.vocabulary.join(
        piece for one in questions for piece in (faq_question(facts, one), facts.statement(one))
    )


def faq_question(facts: Facts, question: Question) -> str:
    """The question and the sign that precedes its answer."""
    language = facts.vocabulary
    opening, closing = language.write(language.question_sign), language.write(language.answer_sign)
    return language.join([opening, question.text, closing])


def banter(facts: Facts, rng: random.Random) -> str:
    """Phrases of all styles without any content: this is how the base model learns them."""
    language = facts.vocabulary
    phrases = [phrase for style in STYLES for phrase in language.phrases(style)]
    said = rng.sample(phrases, rng.randint(*BANTER_PHRASES))
    return language.join(language.write(phrase) for phrase in said)


def few_shot_prompt(facts: Facts, question: str, shots: int, seed: int) -> str:
    """An FAQ of `shots` other training questions, then the question, cut where its answer starts.

    Raises ValueError if the world has no such question, or fewer than `shots` other training questions.
    """
    target = facts.find(question)
    others = [one for one in facts.questions("train") if one != target]
    check_count("shots", shots, 0, len(others))
    examples = facts.rng("few shot", seed, target.text).sample(others, shots)
    parts = [faq(facts, examples)] if examples else []
    return facts.vocabulary.join([*parts, faq_question(facts, target)])


def asks_another_question(facts: Facts, continuation: str) -> bool:
    """Whether the text up to the first question mark is a question of the world, as in a quiz."""
    words, place = _up_to_question_mark(facts, continuation)
    return facts.is_question(facts.vocabulary.join(words[: place + 1]))


def answers_a_question(facts: Facts, continuation: str) -> bool:
    """Whether a value word occurs before the first question mark, or anywhere if there is none."""
    words, place = _up_to_question_mark(facts, continuation)
    return not facts.vocabulary.all_values.isdisjoint(words[:place])


def _up_to_question_mark(facts: Facts, text: str) -> tuple[list[str], int]:
    """The words of text, and the index of the first question mark, or the number of words if there is none."""
    words = facts.vocabulary.words(text)
    mark = facts.vocabulary.question_mark
    return words, words.index(mark) if mark in words else len(words)
