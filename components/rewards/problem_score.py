"""The reward of data=reasoning_gym: the task's own program checks the answer."""

import ast
import functools
import inspect
import re
from collections.abc import Sequence
from typing import Any

from components.data.sources import procedural
from components.rewards.answers import Completion, Scores, answer_in, occurs, pattern_of, texts_of

# Some of the programs evaluate the answer as Python. They are given only what is inert: a literal, or arithmetic.
LITERALS = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")
ARITHMETIC = ("countdown", "puzzle24")
FORMULAS = ("intermediate_integration", "polynomial_multiplication", "simple_integration")
HARMLESS = ("number_sorting",)  # evaluates the problem's own answer
EVALUATES = re.compile(r"\b(eval|exec|compile|parse_expr|sympify)\(")
FUNCTIONS = {"sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "log"}
FUNCTIONS |= {"ln", "sqrt", "Abs"}
LONGEST = 1000  # characters of an answer that is evaluated
HIGHEST = 20  # exponent in such an answer


def solved(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    problem: Sequence[str | None],
    *,
    extract: str | None = None,
    partial: bool = False,
    anywhere: bool = False,
) -> Scores:
    """1 if the whole completion solves the problem, as the task's program checks it, else 0; None without a problem.

    What the program cannot read (it raises an exception) counts 0.
    extract: a regular expression that finds the answer in the completion; the last match counts, its first group if
    there is one, and without a match the score is 0. partial: the program's own score, which can be between 0 and 1.
    anywhere: lenient, a completion with the known answer anywhere in it also counts.
    """
    pattern = pattern_of("solved", "extract", extract)
    scores: Scores = []
    for text, identity in zip(texts_of(completions), problem, strict=True):
        if identity is None:
            scores.append(None)
            continue
        dataset, entry = procedural.problem(identity)
        answer = answer_in(text, pattern)
        score = 0.0 if answer is None else _score(dataset, entry, answer)
        if anywhere and occurs(str(entry["answer"]), text):
            score = 1.0
        scores.append(score if partial else float(score >= 1))
    return scores


def _score(dataset: Any, entry: dict[str, Any], answer: str) -> float:
    name = entry["metadata"]["source_dataset"]
    if answer != entry["answer"] and not _is_inert(name, answer, type(dataset)):
        return 0.0
    try:
        return float(dataset.score_answer(answer, entry))
    except Exception:  # of programs by many authors, on whatever a model wrote
        return 0.0


def _is_inert(name: str, answer: str, kind: type) -> bool:
    """Whether the task's program cannot run anything by reading this answer."""
    if name in LITERALS:
        return _is_literal(answer)
    if name in ARITHMETIC:
        return _is_arithmetic(answer, names=False)
    if name in FORMULAS:
        return _is_arithmetic(answer, names=True)
    if name not in HARMLESS and _evaluates(kind):
        raise ValueError(
            f"reasoning_gym's task {name} evaluates the answer as a program, which is not allowed: answers are a "
            "model's. Remove it from data.tasks"
        )
    return True


@functools.cache
def _evaluates(kind: type) -> bool:
    return bool(EVALUATES.search(inspect.getsource(kind.score_answer)))  # type: ignore[attr-defined]


def _is_literal(answer: str) -> bool:
    try:
        ast.literal_eval(answer if len(answer) <= LONGEST else "")
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return False
    return True


def _is_arithmetic(answer: str, *, names: bool) -> bool:
    """Whether it is a short formula of numbers, + − * / and small powers; names: also of letters and FUNCTIONS."""
    try:
        tree = ast.parse(answer.strip() if len(answer) <= LONGEST else "", mode="eval")
        return _is_formula(tree.body, names)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False


def _is_formula(node: ast.expr, names: bool) -> bool:
    match node:
        case ast.Constant(value=int() | float()):
            return not isinstance(node.value, bool)
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=inner):
            return _is_formula(inner, names)
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), left=left, right=right):
            return _is_formula(left, names) and _is_formula(right, names)
        case ast.BinOp(op=ast.Pow(), left=left, right=right):
            powers = any(isinstance(part, ast.Pow) for part in ast.walk(left))
            return _is_exponent(right) and not powers and _is_formula(left, names)
        case ast.Name(id=name):
            return names and (len(name) == 1 or name == "pi")
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]):
            return names and name in FUNCTIONS and _is_formula(argument, names)
    return False


def _is_exponent(node: ast.expr) -> bool:
    """Whether it is a small number, or a quotient of two."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return not isinstance(value, bool) and value <= HIGHEST
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return _is_exponent(inner)
        case ast.BinOp(op=ast.Div(), left=ast.Constant() as left, right=ast.Constant() as right):
            return _is_exponent(left) and _is_exponent(right)
    return False
