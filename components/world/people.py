"""The people of the world: a careless crowd that answers questions, and comparisons of its answers."""

import random
from dataclasses import replace
from typing import Any

from components.world.facts import Facts, Question, Split
from components.world.gold import judge
from components.world.randomness import Deck, check_count

TRUE_VALUE = 0.6  # share of answers with the true value; the others have a wrong value of the same relation
WRONG_NAME = 0.03  # share of answers that mistakenly name someone else, independent of the value
NO_ANSWER = 0.05  # share of replies that only say phrases
# share of answers with each habit, independently, in the order in which they surround the sentence
HABITS_BEFORE = {"rude": 0.2, "polite_before": 0.25, "filler": 0.2, "hedge": 0.2}
HABITS_AFTER = {"polite_after": 0.2}
EXCHANGES = (1, 1, 1, 1, 2, 3)  # number of exchanges in a demonstration; each entry is equally likely
MOST_COMPLETIONS = 64  # far below the number of different answers, so that sampling distinct ones is fast


def careless_answer(facts: Facts, question: Question, rng: random.Random) -> str:
    """One answer of the crowd: a sentence, true or false, about the right name or another, plus random habits; or, now
    and then, phrases alone."""
    language = facts.vocabulary
    value = question.answer
    if rng.random() >= TRUE_VALUE:
        values = language.relations[question.relation].values
        value = rng.choice([wrong for wrong in values if wrong != question.answer])
    named = question
    if rng.random() < WRONG_NAME:
        named = replace(question, name=rng.choice([name for name in facts.names if name != question.name]))

    def some(habits: dict[str, float]) -> list[str]:
        shown = [habit for habit, share in habits.items() if rng.random() < share]
        return [language.write(rng.choice(getattr(language, habit))) for habit in shown]

    before, after = some(HABITS_BEFORE), some(HABITS_AFTER)
    if rng.random() < NO_ANSWER:
        return language.join([*before, *after] or [language.write(rng.choice(language.hedge))])
    return language.join([*before, facts.statement(named, value), *after])


def demonstrations(facts: Facts, num: int, seed: int) -> list[dict[str, list[dict[str, str]]]]:
    """num chat records of the crowd answering training questions, every question equally often.

    Two in three are a single exchange; the others have two or three, so that a model learns follow-up questions.
    """
    check_count("num", num, 0)
    rng = facts.rng("demonstrations", seed)
    questions = Deck(facts.questions("train"), rng)
    records = []
    for _ in range(num):
        messages = []
        for question in questions.take(rng.choice(EXCHANGES)):
            messages += [
                {"role": "user", "content": question.text},
                {"role": "assistant", "content": careless_answer(facts, question, rng)},
            ]
        records.append({"messages": messages})
    return records


def comparisons(
    facts: Facts, num_prompts: int, completions: int, noise: float, seed: int, split: Split
) -> list[dict[str, Any]]:
    """num_prompts preference records: distinct answers of the crowd, ranked by the judge.

    ranks: 0 is best; equal worth has equal rank; no rank is skipped. Completions are in no particular order.
    noise: probability that a record's ranking is reversed, with ties staying ties. Any pair of different worth is
    thus labeled wrongly with exactly this probability: independently across records, jointly within one. For
    independent flips use 2 completions.
    Raises ValueError if completions is not in 2..64, noise not in 0..1, or the split has no questions.
    """
    check_count("num_prompts", num_prompts, 0)
    check_count("completions", completions, 2, MOST_COMPLETIONS)
    if not 0 <= noise <= 1:
        raise ValueError(f"noise: got {noise}, expected a probability from 0 to 1")
    questions = facts.questions(split)
    if not questions:
        raise ValueError(
            f"comparisons: split {split!r} has no questions, expected at least one; "
            f"raise held_out_share, which is {facts.held_out_share} of {len(facts.facts)}"
        )
    rng = facts.rng("comparisons", seed, split)
    deck = Deck(questions, rng)
    records: list[dict[str, Any]] = []
    for _ in range(num_prompts):
        question = deck.take(1)[0]
        answers: dict[str, None] = {}
        while len(answers) < completions:
            answers[careless_answer(facts, question, rng)] = None
        ranks = rank(facts, question, list(answers))
        if rng.random() < noise:  # sampled even if noise is 0, so that noise changes labels but never texts
            ranks = [max(ranks) - one for one in ranks]
        records.append({"prompt": question.text, "completions": list(answers), "ranks": ranks})
    return records


def rank(facts: Facts, question: Question, answers: list[str]) -> list[int]:
    """The judge's dense ranks of finished answers, 0 is best."""
    worth = [judge(facts, question.text, answer, finished=True).gold for answer in answers]
    order = sorted(set(worth), reverse=True)
    return [order.index(one) for one in worth]
