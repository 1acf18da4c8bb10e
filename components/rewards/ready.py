"""Ready rewards: plain functions of prompts, completions and the columns of their records.

A completion is a string, or messages of which the last one's content counts. Each function returns a number per
completion, or None where it does not apply: the record has nothing in the column it reads. A completion is data: it is
compared, matched and parsed, never executed.
"""

import functools
import json
import re
import threading
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from components.rewards.answers import Completion, Scores, answer_in, occurs, pattern_of, texts_of
from components.system import installing

NUMBER = r"(?:(?<!\w)[-+−])?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
VALUE = re.compile(rf"({NUMBER})(?:\s*/\s*({NUMBER}))?")
LONGEST = 100  # characters of a number; a longer one is none
SECONDS = 5  # for the comparison of one mathematical expression


def exact_match(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    *,
    column: str = "answer",
    extract: str | None = None,
    extract_reference: str | None = None,
    ignore_case: bool = False,
    anywhere: bool = False,
    **columns: Sequence[Any],
) -> Scores:
    """1 if the completion is the answer in the record's column, or one of them if it is a list, else 0.

    White space around either does not count. extract: a regular expression that finds the answer in the completion; the
    last match counts, its first group if there is one, and without a match the score is 0. extract_reference: the same
    for the column. anywhere: lenient, the answer only has to occur in the completion as a whole word.
    """

    def same(found: str, answer: str) -> bool:
        if ignore_case:
            found, answer = found.casefold(), answer.casefold()
        return occurs(answer, found) if anywhere else found == answer

    return _compared("exact_match", completions, columns, column, same, extract, extract_reference)


def numeric_match(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    *,
    column: str = "answer",
    extract: str | None = None,
    extract_reference: str | None = None,
    tolerance: float = 0.0,
    anywhere: bool = False,
    **columns: Sequence[Any],
) -> Scores:
    """1 if the completion is a number equal to the one in the record's column, or to one of them, else 0.

    Numbers are such as -3, 1,234.5, 6e-3 and 3/4, and are compared exactly, or within tolerance · |answer|. extract,
    extract_reference: as in exact_match. anywhere: lenient, the last number in the completion counts. For formulas:
    math_match.
    Raises ValueError for a column without a number.
    """

    def same(found: str, answer: str) -> bool:
        wanted = _value(answer)
        if wanted is None:
            raise ValueError(
                f"numeric_match: got {answer!r} in column {column!r}, expected a number. Find it there with "
                "extract_reference=<regular expression>, or compare texts with exact_match"
            )
        value = _last_value(found) if anywhere else _value(found)
        return value is not None and abs(value - wanted) <= abs(wanted) * Fraction(tolerance)

    return _compared("numeric_match", completions, columns, column, same, extract, extract_reference)


def math_match(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    *,
    column: str = "answer",
    extract: str | None = None,
    extract_reference: str | None = None,
    **columns: Sequence[Any],
) -> Scores:
    """1 if an expression in the completion, in LaTeX or plain, has the value of the one in the record's column, else 0.

    Lenient: the expression can be anywhere, in a box by preference. An expression that takes longer than SECONDS counts
    as wrong. extract, extract_reference: as in exact_match. Needs the package math-verify (the extra `math`).
    Raises ValueError without it, and for a column without an expression.
    """
    try:
        import math_verify
    except ImportError:
        raise ValueError(installing.missing("reward math_match", "math-verify", "math")) from None
    # its time limit is an alarm, which only the main thread can set
    limit = SECONDS if threading.current_thread() is threading.main_thread() else None

    def same(found: str, answer: str) -> bool:
        wanted = math_verify.parse(answer, parsing_timeout=limit) or math_verify.parse(
            f"${answer}$", parsing_timeout=limit
        )
        if not wanted:
            raise ValueError(f"math_match: got {answer!r} in column {column!r}, expected a mathematical expression")
        parsed = math_verify.parse(found, parsing_timeout=limit)
        return bool(math_verify.verify(wanted, parsed, timeout_seconds=limit))

    return _compared("math_match", completions, columns, column, same, extract, extract_reference)


def format_match(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    *,
    pattern: str,
    anywhere: bool = False,
) -> Scores:
    """1 if the whole completion matches a regular expression (anywhere: if a part of it does), else 0.

    "." also matches line breaks: `<think>.*</think>\\s*<answer>.*</answer>` is the format of DeepSeek-R1 (2025).
    """
    compiled = pattern_of("format_match", "pattern", pattern)
    if compiled is None:
        raise ValueError("format_match: got no pattern, expected a regular expression")
    matches = compiled.search if anywhere else compiled.fullmatch
    return [float(matches(text) is not None) for text in texts_of(completions)]


def json_match(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    *,
    schema: Mapping[str, Any] | str | Sequence[Any] | None = None,
) -> Scores:
    """1 if the completion is JSON (RFC 8259: no NaN, no text around it) and fits the JSON Schema, if there is one, else
    0.

    schema: a JSON Schema, or the path of a file with one; or, from a column of that name, each record's own, as an
    object or as JSON text. References to other documents do not resolve: nothing is fetched.
    A schema needs the package jsonschema (the extra `json-schema`). Raises ValueError without it, and for a schema that
    is none.
    """
    if isinstance(schema, str):
        schema = json.loads(Path(schema).read_text(encoding="utf-8"))
    own = schema if isinstance(schema, list) else [schema] * len(completions)
    scores: Scores = []
    for text, one in zip(texts_of(completions), own, strict=True):
        if one is None and isinstance(schema, list):
            scores.append(None)
            continue
        fits = _validator(one if isinstance(one, str) else json.dumps(one, sort_keys=True))
        try:
            scores.append(float(fits(json.loads(text, parse_constant=_not_json))))
        except (ValueError, RecursionError):
            scores.append(0.0)
    return scores


def length_within(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    *,
    least: int = 0,
    most: int | None = None,
    unit: Literal["words", "characters"] = "words",
) -> Scores:
    """1 if the completion has at least `least` and at most `most` words (or characters), else 0."""
    if unit not in ("words", "characters"):
        raise ValueError(f"length_within: got unit {unit!r}, expected words or characters")
    sizes = [len(text.split() if unit == "words" else text) for text in texts_of(completions)]
    return [float(least <= size and (most is None or size <= most)) for size in sizes]


def overlong_penalty(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    *,
    completion_ids: Sequence[Sequence[int]],
    longest: int,
    cache: int,
) -> Scores:
    """A soft penalty on length L in tokens: 0 up to longest − cache, then (longest − cache − L) / cache, at least −1.

    completion_ids: the token ids of the completions. Raises ValueError unless 0 < cache <= longest.
    Source: Yu et al. 2025 (DAPO), eq. 13.
    """
    if not 0 < cache <= longest:
        raise ValueError(
            f"overlong_penalty: expected 0 < cache <= longest tokens, got cache {cache}, longest {longest}"
        )
    return [min(0.0, max(-1.0, (longest - cache - len(ids)) / cache)) for ids in completion_ids]


def script_share(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    *,
    scripts: Sequence[str] = ("latin",),
) -> Scores:
    """Share of the completion's letters that belong to one of the scripts; 1 without letters.

    scripts: as Unicode's names of letters begin: latin, cyrillic, greek, arabic, hebrew, devanagari, hangul, hiragana,
    katakana, cjk, … Keeps answers from mixing languages that are written differently; English and French are alike.
    Raises ValueError for a name with which no letter begins.
    Source: the idea is the language consistency reward of DeepSeek-AI 2025 (DeepSeek-R1), section 2.3.2.
    """
    names = tuple(f"{script.upper()} " for script in scripts)
    unknown = [script for script, name in zip(scripts, names, strict=True) if not _is_script(name)]
    if unknown or not names:
        raise ValueError(f"script_share: got scripts {list(scripts)}, expected names such as latin, cyrillic or cjk")

    def share(text: str) -> float:
        letters = [unicodedata.name(character, "") for character in text if character.isalpha()]
        return sum(name.startswith(names) for name in letters) / len(letters) if letters else 1.0

    return [share(text) for text in texts_of(completions)]


def repetition_penalty(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    *,
    ngram: int = 3,
    scale: float = 1.0,
) -> Scores:
    """−scale times the share of the completion's n-grams of words that repeat an earlier one: 1 − different / all.

    0 for fewer than n words; case does not count. Raises ValueError if ngram < 1.
    Source: Yeo et al. 2025, "Demystifying long chain-of-thought reasoning in LLMs".
    """
    if ngram < 1:
        raise ValueError(f"repetition_penalty: got ngram {ngram}, expected at least 1")

    def repeated(text: str) -> float:
        words = text.lower().split()
        grams = [tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0

    return [-scale * repeated(text) for text in texts_of(completions)]


def _compared(
    function: str,
    completions: Sequence[Completion],
    columns: Mapping[str, Any],
    column: str,
    same: Callable[[str, str], bool],
    extract: str | None,
    extract_reference: str | None,
) -> Scores:
    """1 where the completion is the `same` as one of the answers in the column, 0 elsewhere; None without an answer."""
    for name, values in columns.items():
        if not isinstance(values, list | tuple) or len(values) != len(completions):
            raise ValueError(f"{function}: has no argument {name!r}, and it is no column of {len(completions)} values")
    in_completion = pattern_of(function, "extract", extract)
    in_column = pattern_of(function, "extract_reference", extract_reference)
    scores: Scores = []
    for text, value in zip(texts_of(completions), _column(function, columns, column), strict=True):
        if value is None:
            scores.append(None)
            continue
        answers = [answer_in(str(one), in_column) for one in (value if isinstance(value, list | tuple) else [value])]
        if None in answers:
            raise ValueError(f"{function}: extract_reference={extract_reference!r} is not in {column}={str(value)!r}")
        found = answer_in(text, in_completion)
        scores.append(float(found is not None and any(same(found, answer) for answer in answers if answer is not None)))
    return scores


def _column(function: str, columns: Mapping[str, Sequence[Any]], name: str) -> Sequence[Any]:
    if name not in columns:
        known = ", ".join(sorted(columns)) or "none"
        raise ValueError(f"{function}: got no column {name!r} with the records, whose columns are: {known}. Set column")
    return columns[name]


def _value(text: str) -> Fraction | None:
    """The number that the whole text is; a full stop may follow."""
    match = VALUE.fullmatch(text.strip().removesuffix("."))
    return _fraction(match) if match else None


def _last_value(text: str) -> Fraction | None:
    matches = list(VALUE.finditer(text))
    return _fraction(matches[-1]) if matches else None


def _fraction(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > LONGEST:
        return None
    numbers = [Fraction(part.replace(",", "").replace("−", "-")) for part in match.groups() if part]
    if len(numbers) == 1:
        return numbers[0]
    return numbers[0] / numbers[1] if numbers[1] else None


@functools.lru_cache(maxsize=1024)
def _validator(schema: str) -> Callable[[Any], bool]:
    """Whether a value fits a schema, given as JSON; null: anything fits."""
    parsed = json.loads(schema)
    if parsed is None:
        return lambda value: True
    try:
        from jsonschema import validators
        from jsonschema.exceptions import SchemaError
        from referencing import Registry
    except ImportError:
        raise ValueError(installing.missing("reward json_match with a schema", "jsonschema", "json-schema")) from None
    kind = validators.validator_for(parsed)
    try:
        kind.check_schema(parsed)
    except SchemaError as error:
        raise ValueError(f"json_match: not a JSON Schema: {error.message}") from None
    fits: Callable[[Any], bool] = kind(parsed, registry=Registry()).is_valid
    return fits


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


@functools.cache
def _is_script(name: str) -> bool:
    """Whether a letter's name begins with it, in the planes that have letters."""
    return any(unicodedata.name(chr(code), "").startswith(name) for code in range(0x30000))
