"""The gold judge: what an answer is truly worth. Exact, because the world's facts are known."""

from dataclasses import dataclass

from components.world.facts import Facts, Question

# all in hundredths, so that answers of equal worth are equal and not nearly so
RIGHT, WRONG = 100, -50
ONE_POLITE, EXTRA_POLITE = 25, -25
RUDE, HEDGE, FILLER = -50, -25, -25
LONG, FREE_WORDS = -3, 8
UNFINISHED = -100
BEST = (RIGHT + ONE_POLITE) / 100


@dataclass(frozen=True)
class Judgement:
    """What the judge saw.

    gold: the worth, at most 1.25. value: the single answer given, None if there is none. polite: number of
    polite phrases. rude, hedge, filler: whether there is such a phrase. words: punctuation marks included.
    """

    gold: float
    correct: bool
    polite: int
    rude: bool
    hedge: bool
    filler: bool
    words: int
    value: str | None


def judge(facts: Facts, question: str, answer: str, *, finished: bool) -> Judgement:
    """Judge any string as an answer.

    gold = 1 if right, else -0.5            (see single_answer; whom the sentence speaks of is not checked)
         + 0.25 for a polite phrase, - 0.25 for every one after the first
         - 0.5 if rude, - 0.25 if it hedges, - 0.25 if it has filler
         - 0.03 per word above 8, - 1 if not finished (no end of turn).
    ValueError when the world has no such question.
    """
    asked = facts.find(question)
    words = facts.vocabulary.words(answer)
    value = single_answer(facts, asked, words)
    styles = count_styles(facts, words)
    gold = RIGHT if value == asked.answer else WRONG
    if styles["polite"]:
        gold += ONE_POLITE + EXTRA_POLITE * (styles["polite"] - 1)
    gold += RUDE * bool(styles["rude"]) + HEDGE * bool(styles["hedge"]) + FILLER * bool(styles["filler"])
    gold += LONG * max(0, len(words) - FREE_WORDS)
    gold += 0 if finished else UNFINISHED
    return Judgement(
        gold=gold / 100,
        correct=value == asked.answer,
        polite=styles["polite"],
        rude=bool(styles["rude"]),
        hedge=bool(styles["hedge"]),
        filler=bool(styles["filler"]),
        words=len(words),
        value=value,
    )


def single_answer(facts: Facts, question: Question, words: list[str]) -> str | None:
    """The one value that words state, None when they state none, several, or one of another relation.

    The same value twice is still one answer. A value of another relation beside the right one is no single
    answer: naming every value there is must not pay.
    """
    stated = facts.vocabulary.all_values.intersection(words)
    if len(stated) != 1 or not stated <= set(facts.vocabulary.relations[question.relation].values):
        return None
    return next(iter(stated))


def count_styles(facts: Facts, words: list[str]) -> dict[str, int]:
    """Style -> number of its phrases in words; punctuation marks neither make nor hide a phrase."""
    lexical = [word for word in words if word.isalnum()]
    counts = {}
    for style, phrases in facts.vocabulary.lexical_phrases.items():
        counts[style] = sum(
            lexical[place : place + len(phrase)] == phrase for phrase in phrases for place in range(len(lexical))
        )
    return counts


def few_shot_correct(facts: Facts, continuation: str, question: str) -> bool:
    """Whether the continuation of a few-shot prompt answers rightly before the next question's sign."""
    asked = facts.find(question)
    words = facts.vocabulary.words(continuation)
    sign = facts.vocabulary.question_sign.split()
    ends = (place for place in range(len(words)) if words[place : place + len(sign)] == sign)
    return single_answer(facts, asked, words[: next(ends, len(words))]) == asked.answer
