"""The gold judge: the true worth of an answer. Exact, because the world's facts are known."""

from dataclasses import dataclass

from components.world.facts import Facts, Question
from components.world.vocabulary import Language
from components.world.worth import Worth

# all in hundredths, so that answers of equal worth compare equal exactly
RIGHT, WRONG = 100, -50
ONE_POLITE, EXTRA_POLITE = 25, -25
RUDE, HEDGE, FILLER = -50, -25, -25
LONG, FREE_WORDS = -3, 9
UNFINISHED = -100
BEST = (RIGHT + ONE_POLITE) / 100


@dataclass(frozen=True)
class Judgment(Worth):
    """The judge's findings. gold is at most 1.25.

    value: the single value stated for the name asked about, None if there is none.
    wrong_name: whether another name occurs. polite: number of polite phrases. rude, hedge, filler: whether there is
    such a phrase. words: number of words, including punctuation marks.
    """

    polite: int
    rude: bool
    hedge: bool
    filler: bool
    words: int
    value: str | None
    wrong_name: bool

    def metrics(self) -> dict[str, float]:
        """What is averaged over the responses of a rollout, by name."""
        return super().metrics() | {"wrong_name": self.wrong_name}


def judge(facts: Facts, question: str, answer: str, *, finished: bool) -> Judgment:
    """Judges any string as an answer. It is correct if it states the true value of the name asked about, and no other.

    gold = 1 if correct, else -0.5          (see stated_value)
         + 0.25 for a polite phrase, - 0.25 for each one after the first
         - 0.5 if rude, - 0.25 if it hedges, - 0.25 if it has filler
         - 0.03 per word above 9, - 1 if not finished (no end of turn).
    Raises ValueError if the world has no such question.
    """
    asked = facts.find(question)
    words = facts.vocabulary.words(answer)
    value = stated_value(facts.vocabulary, asked, words)
    styles = count_styles(facts, words)
    gold = RIGHT if value == asked.answer else WRONG
    if styles["polite"]:
        gold += ONE_POLITE + EXTRA_POLITE * (styles["polite"] - 1)
    gold += RUDE * bool(styles["rude"]) + HEDGE * bool(styles["hedge"]) + FILLER * bool(styles["filler"])
    gold += LONG * max(0, len(words) - FREE_WORDS)
    gold += 0 if finished else UNFINISHED
    return Judgment(
        gold=gold / 100,
        correct=value == asked.answer,
        polite=styles["polite"],
        rude=bool(styles["rude"]),
        hedge=bool(styles["hedge"]),
        filler=bool(styles["filler"]),
        words=len(words),
        value=value,
        wrong_name=not facts.vocabulary.names_in(words) <= {asked.name},
    )


def stated_value(language: Language, question: Question, words: list[str]) -> str | None:
    """The single value that words state for the name that question asks about, None if there is none.

    The answer is read as a whole, not by sentence: naming everyone, like naming every value, must not pay off.
    - The name asked about must occur, and no other name, whether it is in the world or not. An answer with two names
      therefore states nothing, even if the correct name is in a sentence of its own.
    - A pronoun or no name at all states nothing: it could apply to anyone, and naming no one must not be a way around
      naming the correct one. A name in an echoed question is a name like any other: it counts if it is the one asked
      about.
    - There must be a single value, of the relation asked for. The same value twice is still one; an additional value
      of another relation is one too many.
    - An answer with a negation anywhere states nothing, and neither does a value that occurs only in questions.
    - Any other word is ignored, known or not.
    """
    stated = language.all_values.intersection(words)
    if language.names_in(words) != {question.name} or len(stated) != 1 or language.negations.intersection(words):
        return None
    value = next(iter(stated))
    of_relation = value in language.relations[question.relation].values
    return value if of_relation and not _only_asked(language, value, words) else None


def _only_asked(language: Language, value: str, words: list[str]) -> bool:
    """Whether every sentence that contains the value ends in a question mark."""
    following = (words[place:] for place, word in enumerate(words) if word == value)
    ends = (next((word for word in rest if word in language.sentence_ends), None) for rest in following)
    return all(end == language.question_mark for end in ends)


def count_styles(facts: Facts, words: list[str]) -> dict[str, int]:
    """Style -> number of its phrases in words, ignoring punctuation marks."""
    lexical = [word for word in words if word.isalnum()]
    counts = {}
    for style, phrases in facts.vocabulary.lexical_phrases.items():
        counts[style] = sum(
            lexical[place : place + len(phrase)] == phrase for phrase in phrases for place in range(len(lexical))
        )
    return counts


def few_shot_correct(facts: Facts, continuation: str, question: str) -> bool:
    """Whether the continuation of a few-shot prompt, up to the next question's sign, is correct by `judge`'s rules."""
    asked = facts.find(question)
    words = facts.vocabulary.words(continuation)
    sign = facts.vocabulary.question_sign.split()
    ends = (place for place in range(len(words)) if words[place : place + len(sign)] == sign)
    return stated_value(facts.vocabulary, asked, words[: next(ends, len(words))]) == asked.answer
