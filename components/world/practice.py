"""The texts of the exercises: pretraining documents, demonstrations and comparisons, by people who slip."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from components.world import corpus as documents
from components.world import people
from components.world.exercise_texts import (
    STEPS,
    Turn,
    as_record,
    call,
    consulted,
    entry,
    exchange,
    invented,
    record,
    statement,
    subject,
    sum_answer,
    sum_question,
    tools,
    worked,
)
from components.world.exercises import Exercises
from components.world.facts import Question, Split
from components.world.randomness import Deck, check_count
from components.world.vocabulary import ENGLISH

# of every twenty documents, or dialogues
DOCUMENTS = {"encyclopedia": 4, "quiz": 2, "faq": 3, "banter": 1, "record": 2, "passage": 3, "worked": 3, "call": 2}
DIALOGUES = {"facts": 7, "record": 3, "passage": 2, "lookup": 2, "direct": 2, "steps": 2, "calculator": 2}
CAREFUL = 0.25  # share of people whose answers are all true and plain; the others are people.careless_answer's
SLIP = 0.3  # share of worked sums with an error in one column
AMOUNTS = (-2, -1, 1, 2)  # by which a column is wrong in a comparison
BROKEN = 0.5  # share of records in another form than the one asked for
EXCHANGES = (1, 1, 2, 3, 4)  # number of questions about facts in a dialogue; each entry is equally likely


def corpus(world: Exercises, num_documents: int, seed: int) -> list[dict[str, str]]:
    """Text records of DOCUMENTS' kinds.

    Common names have their true facts, as in World. A passage invents facts about any other name and asks about them,
    which teaches reading. A worked sum has no slip. A call has its result and the answer after it.
    """
    check_count("num_documents", num_documents, 0)
    facts, rng = world.facts, world.rng("corpus", seed)
    kinds, names, others = _kinds(DOCUMENTS, rng), Deck(facts.names, rng), Deck(world.other_names, rng)
    asked, answered = (Deck(facts.questions("all"), rng) for _ in range(2))
    records = []
    for _ in range(num_documents):
        kind = next(kinds)
        if kind == "encyclopedia":
            text = documents.encyclopedia(facts, names.take(1)[0], rng)
        elif kind == "quiz":
            text = ENGLISH.join(one.text for one in asked.take(rng.randint(3, 5)))
        elif kind == "faq":
            text = documents.faq(facts, answered.take(rng.randint(2, 5)))
        elif kind == "banter":
            text = documents.banter(facts, rng)
        elif kind == "record":
            text = "\n".join(f"{as_record(one.text)}\n{record(one)}" for one in answered.take(rng.randint(2, 4)))
        elif kind == "passage":
            text = passage(others.take(1)[0], rng)
        elif kind == "worked":
            pair = world.training_sum(rng)
            text = f"{sum_question(*pair)}\n{worked(*pair)}"
        else:
            text = _consulted(world, others.take(1)[0], rng)
        records.append({"text": text})
    return records


def _kinds(counts: dict[str, int], rng: random.Random) -> Iterator[str]:
    """The kinds in random order, round after round, each as often per round as `counts` says."""
    listed = [kind for kind, number in counts.items() for _ in range(number)]
    while True:
        yield from rng.sample(listed, len(listed))


def _consulted(world: Exercises, name: str, rng: random.Random) -> str:
    """A sum by the calculator, or in one of three texts invented facts about a name by look-up."""
    if rng.random() < 2 / 3:
        a, b = world.training_sum(rng)
        return consulted(sum_question(a, b), "calculator", "expression", f"{a}+{b}", str(a + b), sum_answer(a + b))
    questions = invented(name, rng)
    asked = rng.choice(questions)
    return consulted(asked.text, "lookup", "text", subject(name), entry(questions, rng), statement(asked))


def passage(name: str, rng: random.Random) -> str:
    """Invented facts about a name, then questions about them with answers, as sentences or records."""
    questions = invented(name, rng)
    lines = [entry(questions, rng)]
    for one in rng.sample(questions, 2):
        lines += [as_record(one.text), record(one)] if rng.random() < 0.25 else [one.text, statement(one)]
    return "\n".join(lines)


def demonstrations(world: Exercises, num: int, seed: int) -> list[dict[str, Any]]:
    """Chat records of DIALOGUES' kinds about training questions, each question about as often:

    facts       1 to 4 questions to one person: a careful one, or one of the careless crowd
    record      one asked for as JSON, which half of the answers are not
    passage     a question about invented facts after their text, answered from it
    lookup      the same, with the text fetched by a call
    direct      a sum at once; all are correct, since their difficulty is error enough
    steps       a sum by columns, in which people slip
    calculator  a sum by a call
    """
    check_count("num", num, 0)
    rng = world.rng("demonstrations", seed)
    kinds, questions = _kinds(DIALOGUES, rng), Deck(world.facts.questions("train"), rng)
    others = Deck(world.other_names, rng)
    records: list[dict[str, Any]] = []
    for _ in range(num):
        kind = next(kinds)
        if kind == "facts":
            records.append({"messages": _asked(world, questions.take(rng.choice(EXCHANGES)), rng)})
        elif kind == "record":
            question = questions.take(1)[0]
            records.append({"messages": exchange(as_record(question.text), _careless_record(question, rng))})
        elif kind in ("passage", "lookup"):
            records.append(_read(world, others.take(1)[0], rng, fetched=kind == "lookup"))
        else:
            records.append(_summed(world.training_sum(rng), kind, rng))
    return records


def _asked(world: Exercises, questions: Sequence[Question], rng: random.Random) -> list[Turn]:
    careful = rng.random() < CAREFUL
    turns = []
    for one in questions:
        turns += exchange(one.text, statement(one) if careful else people.careless_answer(world.facts, one, rng))
    return turns


def _careless_record(question: Question, rng: random.Random) -> str:
    """A record of the crowd; a broken one has a phrase before it, lacks its end, or is a sentence."""
    value = question.answer
    if rng.random() >= people.TRUE_VALUE + (1 - people.TRUE_VALUE) * CAREFUL:
        value = rng.choice([one for one in ENGLISH.relations[question.relation].values if one != value])
    written = record(question, value)
    if rng.random() >= BROKEN:
        return written
    phrase = rng.choice(ENGLISH.polite_before)
    return rng.choice([f"{phrase} {written}", written.removesuffix("}"), statement(question, value)])


def _read(world: Exercises, name: str, rng: random.Random, *, fetched: bool) -> dict[str, Any]:
    """A question about a text: in one of four the true one about a common name, else an invented one; in one of four
    the answer is a record."""
    questions = invented(name, rng)
    if rng.random() < 0.25:
        common = rng.choice(world.facts.questions("train")).name
        questions = [one for one in world.facts.questions("all") if one.name == common]
        asked = rng.choice([one for one in world.facts.questions("train") if one.name == common])
    else:
        asked = rng.choice(questions)
    text = entry(questions, rng)
    question, answer = asked.text, statement(asked)
    if rng.random() < 0.25:
        question, answer = as_record(question), record(asked)
    if not fetched:
        return {"messages": exchange(f"{text}\n{question}", answer)}
    asking, answering = exchange(question, answer)
    result = {"role": "tool", "tool_call_id": "call", "name": "lookup", "content": text}
    return {"messages": [asking, call("lookup", "text", subject(asked.name)), result, answering], "tools": tools()}


def _summed(pair: tuple[int, int], kind: str, rng: random.Random) -> dict[str, Any]:
    question, answer = sum_question(*pair), sum_answer(sum(pair))
    if kind == "direct":
        return {"messages": exchange(question, answer)}
    if kind == "steps":
        return {"messages": exchange(f"{question}\n{STEPS}", _careless_sum(pair, rng))}
    asking, answering = exchange(question, answer)
    result = {"role": "tool", "tool_call_id": "call", "name": "calculator", "content": str(sum(pair))}
    calling = call("calculator", "expression", f"{pair[0]}+{pair[1]}")
    return {"messages": [asking, calling, result, answering], "tools": tools()}


def _careless_sum(pair: tuple[int, int], rng: random.Random) -> str:
    """A worked sum of the crowd; a slip is one more or one less in a random column."""
    slip = (rng.randrange(len(str(pair[0]))), rng.choice([-1, 1]))
    return worked(*pair, slip if rng.random() < SLIP else None)


def comparisons(
    world: Exercises, num_prompts: int, completions: int, noise: float, seed: int, split: Split
) -> list[dict[str, Any]]:
    """Preference records of three kinds in turns:

    facts    see people.comparisons
    sums     worked ones; the one without a slip is better than the others
    records  the crowd's and the right one: each is the better for being JSON, and for stating the true value

    noise: as in people.comparisons.
    """
    check_count("completions", completions, 2, 1 + len(AMOUNTS) * world.digits)
    about = people.comparisons(world.facts, -(-num_prompts // 3), completions, noise, seed, split)
    rng = world.rng("comparisons", seed, split)
    questions = Deck(world.facts.questions(split), rng)
    records: list[dict[str, Any]] = []
    for number in range(num_prompts):
        if number % 3 == 0:
            records.append(about[number // 3])
        elif number % 3 == 1:
            pair = world.training_sum(rng) if split == "train" else rng.choice(world.held_out_sums)
            faults = {worked(*pair): 0}
            while len(faults) < completions:
                faults[worked(*pair, (rng.randrange(world.digits), rng.choice(AMOUNTS)))] = 1
            records.append(_ranked(sum_question(*pair), faults, noise, rng))
        else:
            question = questions.take(1)[0]
            faults = {record(question): 0}
            while len(faults) < completions:
                answer = _careless_record(question, rng)
                is_json = answer.startswith("{") and answer.endswith("}")
                faults[answer] = (not is_json) + (question.answer not in ENGLISH.words(answer))
            records.append(_ranked(as_record(question.text), faults, noise, rng))
    return records


def _ranked(prompt: str, faults: dict[str, int], noise: float, rng: random.Random) -> dict[str, Any]:
    """A preference record of distinct answers, in random order, by the number of their faults; with a probability of
    noise, the one with the most faults is ranked first."""
    answers = rng.sample(list(faults), len(faults))
    most = max(faults.values()) if rng.random() < noise else 0
    return {"prompt": prompt, "completions": answers, "ranks": [abs(most - faults[one]) for one in answers]}


@dataclass(frozen=True)
class Practice(Exercises):
    """The exercises (fields: see Exercises), and all records generated from them."""

    def corpus(self, num_documents: int, seed: int = 0) -> list[dict[str, str]]:
        """Text records: {"text"}. See corpus."""
        return corpus(self, num_documents, seed)

    def demonstrations(self, num: int, seed: int = 0) -> list[dict[str, Any]]:
        """Chat records, some with tools. See demonstrations."""
        return demonstrations(self, num, seed)

    def comparisons(
        self, num_prompts: int, completions: int = 4, noise: float = 0.0, seed: int = 0, split: Split = "train"
    ) -> list[dict[str, Any]]:
        """Preference records. See comparisons."""
        return comparisons(self, num_prompts, completions, noise, seed, split)
