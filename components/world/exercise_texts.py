"""How the exercises are written: questions, worked sums, records, entries of the encyclopedia, calls of tools."""

import json
import random
from collections.abc import Sequence
from typing import Any

from components.world.facts import Question, statement_of
from components.world.vocabulary import ENGLISH

STEPS = "step by step ."  # asks for a sum's steps
AS_JSON = "as json ."  # asks for a record
TOOLS = ("calculator", "lookup")

Turn = dict[str, Any]


def numbers(digits: int, rng: random.Random) -> tuple[int, int]:
    """Two numbers of `digits` digits each."""
    low, high = 10 ** (digits - 1), 10**digits - 1
    return rng.randint(low, high), rng.randint(low, high)


def sum_question(a: int, b: int) -> str:
    """Asks for a sum."""
    return f"what is {a}+{b} ?"


def sum_answer(total: int) -> str:
    """States a sum."""
    return f"the sum is {total} ."


def worked(a: int, b: int, slip: tuple[int, int] | None = None) -> str:
    """A sum by columns from the right, each as digit+digit+carry=two digits, then the sum.

    a, b: of equally many digits. slip: (column, amount) by which one column's result is wrong, modulo 20, with all
    that follows from it.
    """
    digits, carry, columns, total = len(str(a)), 0, [], 0
    for place in range(digits):
        left, right = a // 10**place % 10, b // 10**place % 10
        column = left + right + carry
        if slip is not None and place == slip[0]:
            column = (column + slip[1]) % 20
        columns.append(f"{left}+{right}+{carry}={column:02}")
        total += column % 10 * 10**place
        carry = column // 10
    return f"{' , '.join(columns)} , so {sum_answer(total + carry * 10**digits)}"


def as_record(question: str) -> str:
    """The question, asked for an answer in JSON."""
    return f"{question} {AS_JSON}"


def record(question: Question, value: str | None = None) -> str:
    """The answer as a JSON object; value: another than the true one."""
    return json.dumps({question.relation: value or question.answer})


def invented(name: str, rng: random.Random) -> list[Question]:
    """The questions about a name, with random answers."""
    relations = ENGLISH.relations.items()
    return [
        Question(ENGLISH.write(relation.question, name=name), name, key, rng.choice(relation.values))
        for key, relation in relations
    ]


def statement(question: Question, value: str | None = None) -> str:
    """The answer as a sentence; value: another than the true one."""
    return statement_of(ENGLISH, question, value)


def entry(questions: Sequence[Question], rng: random.Random) -> str:
    """The answers to the questions, in random order."""
    return ENGLISH.join(map(statement, rng.sample(questions, len(questions))))


def subject(name: str) -> str:
    """What is looked up about a name, after a word as in questions: after a quotation mark it has another token."""
    return f"the {name}"


def exchange(question: str, answer: str) -> list[Turn]:
    """A question and its answer, as two messages."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def tools() -> list[Turn]:
    """The tools of the dialogues, as chat records list them."""
    return [{"type": "function", "function": {"name": name}} for name in TOOLS]


def call(tool: str, argument: str, value: str) -> Turn:
    """A call of a tool, as a message."""
    function = {"name": tool, "arguments": {argument: value}}
    calls = [{"id": "call", "type": "function", "function": function}]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def consulted(question: str, tool: str, argument: str, value: str, result: str, answer: str) -> str:
    """A question, a call of a tool in JSON, its result and the answer, each on a line."""
    written = json.dumps({"name": tool, "arguments": {argument: value}})
    return f"{question}\n{written}\nresult : {result}\n{answer}"
