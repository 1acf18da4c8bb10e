"""Calling a reward function on responses, and checking what it returns."""

import difflib
import inspect
import json
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from components.rewards.function_file import Place, RewardError, load

Value = float | None  # None: the function does not apply to this record
LONGEST = 300  # characters of a text in a message
ARGUMENTS = ("prompts", "completions", "completion_ids", "texts", "finished")  # a column has another name


class Answered(NamedTuple):
    """N responses as a function sees them, all of it JSON.

    prompts: messages. texts: the responses. ids: their tokens. finished: whether each ended by itself. columns: of each
    prompt's record, by name; None where a record has no such field.
    """

    prompts: Sequence[Sequence[Mapping[str, Any]]]
    texts: Sequence[str]
    ids: Sequence[Sequence[int]]
    finished: Sequence[bool]
    columns: Mapping[str, Sequence[Any]]

    def only(self, i: int) -> "Answered":
        """The i-th response alone."""
        own = slice(i, i + 1)
        columns = {name: values[own] for name, values in self.columns.items()}
        return Answered(self.prompts[own], self.texts[own], self.ids[own], self.finished[own], columns)

    def arguments(self) -> dict[str, list[Any]]:
        """By name, what a function can take. Raises RewardError for a column with the name of another argument."""
        taken = sorted(set(ARGUMENTS) & self.columns.keys())
        if taken:
            raise RewardError(
                f"the records have a column {taken[0]!r}, but a reward function's argument of that name is something "
                "else. Rename the column in the data"
            )
        completions = [[{"role": "assistant", "content": text}] for text in self.texts]
        own = (self.prompts, completions, self.ids, self.texts, self.finished)
        named = zip(ARGUMENTS, own, strict=True)
        return {name: list(values) for name, values in (*named, *self.columns.items())}

    def described(self, i: int) -> str:
        """Response i and the record of its prompt, for a message."""
        prompt = self.prompts[i][-1].get("content", "") if self.prompts[i] else ""
        lines = {"prompt": prompt, "response": self.texts[i], **{n: values[i] for n, values in self.columns.items()}}
        return "".join(f"\n  {name}: {_short(value)}" for name, value in lines.items())


class RewardFunction:
    """One function, called with those of these arguments that it takes.

    prompts          N lists of messages
    completions      N lists of one message, {"role": "assistant", "content": text}
    completion_ids   N lists of token ids
    texts            N strings, the contents of the completions
    finished         N booleans: whether the response ended by itself
    <column>         N values of that field of the prompts' records; None where a record has none

    It returns N numbers; None for a response that it does not apply to. extra: further arguments, from its settings,
    each of which has to be a parameter: its **columns get columns only, or a mistyped setting would have no effect.
    """

    def __init__(self, name: str, place: Place, key: str, extra: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.name, self.place, self.key, self.extra = name, place, key, dict(extra)
        self._function: Callable[..., Any] | None = None

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Self:
        """A reward from a Python function, under its own name."""
        name = getattr(function, "__name__", type(function).__name__)
        code = getattr(inspect.unwrap(function), "__code__", None)  # absent in what is not written in Python
        made = cls(name, Place(Path(code.co_filename if code else "."), name, name), "reward")
        made._function = function
        return made

    def __str__(self) -> str:
        return f"{self.key.partition('.')[0]} {self.name} ({self.place.written})"

    def load(self) -> Callable[..., Any]:
        """The function itself, imported at the first call. Raises RewardError if that fails."""
        if self._function is None:
            self._function = load(self.place, self.key)
        return self._function

    def __call__(self, answered: Answered) -> list[Value]:
        """A number, or None, for each response.

        Raises RewardError, with the response and its record, if the function raises or returns anything else.
        """
        function = self.load()
        arguments = self._taken(function, answered.arguments())
        try:
            returned = function(**arguments)
        except Exception as error:
            raise RewardError(self._raised(error, answered)) from error
        return self._checked(returned, answered)

    def _taken(self, function: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
        """The arguments that the function has a name for. Raises RewardError if a required one is missing."""
        if clash := sorted(self.extra.keys() & offered.keys()):
            raise RewardError(
                f"{self}: {clash[0]} is both one of its arguments in the settings and a column, or always given"
            )
        offered = offered | self.extra
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # not written in Python
            return offered
        by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in parameters):
            raise RewardError(f"{self}: takes arguments by position only; they are passed by name. Remove the /")
        collecting = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
        settable = [p.name for p in by_name if p.name in self.extra or p.name not in offered]
        if unknown := [name for name in self.extra if name not in settable]:
            near = difflib.get_close_matches(unknown[0], settable, n=2)
            known = f"Did you mean {' or '.join(near)}?" if near else f"It has {', '.join(settable) or 'none to set'}."
            more = f" **{collecting} collects columns of the data, and no settings" if collecting else ""
            raise RewardError(f"{self}: has no argument {unknown[0]!r}. {known}{more}")
        needed = [p.name for p in by_name if p.default is p.empty and p.name not in offered]
        if needed:
            columns = [name for name in offered if name not in ARGUMENTS and name not in self.extra]
            raise RewardError(
                f"{self}: needs {', '.join(needed)}, which the records do not have. Their columns: "
                f"{', '.join(columns) or 'none but the prompt'}. Add it to every record of data.path, or give the "
                f"argument a default. Other arguments: {', '.join(ARGUMENTS)}"
            )
        return offered if collecting else {p.name: offered[p.name] for p in by_name if p.name in offered}

    def _raised(self, error: Exception, answered: Answered) -> str:
        """The message for an exception, with the first response on which the function raises it alone."""
        frames = traceback.extract_tb(error.__traceback__)
        last = next((f for f in reversed(frames) if f.filename == str(self.place.file.resolve())), frames[-1])
        what = f"{self} raised {type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
        for i in range(len(answered.texts)):
            alone = answered.only(i)
            try:
                self.load()(**self._taken(self.load(), alone.arguments()))
            except Exception as again:
                if type(again) is type(error):
                    return f"{what}\non{alone.described(0)}\nFix the function, or return None where it does not apply"
        return f"{what}\non {len(answered.texts)} responses at once, but on none of them alone"

    def _checked(self, returned: Any, answered: Answered) -> list[Value]:
        count = len(answered.texts)
        values = returned.tolist() if hasattr(returned, "tolist") else returned
        if not isinstance(values, list | tuple):
            kind = type(returned).__name__
            hint = ". It is called once with lists, not once per response" if isinstance(values, int | float) else ""
            raise RewardError(f"{self} returned {_a(kind)}, expected a list of {count} numbers (or None){hint}")
        if len(values) != count:
            raise RewardError(
                f"{self} returned {len(values)} numbers for {count} responses, expected one for each, in their order"
            )
        checked = [_number(value) for value in values]
        for i, (value, number) in enumerate(zip(values, checked, strict=True)):
            if value is not None and (number is None or not math.isfinite(number)):
                raise RewardError(
                    f"{self} returned {_short(value)}, expected a finite number, or None where it does not apply; on"
                    f"{answered.described(i)}"
                )
        return checked


def _number(value: Any) -> float | None:
    """The value as a float; None if it is not a number."""
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    return float(value) if isinstance(value, int | float) else None


def _a(kind: str) -> str:
    return "None" if kind == "NoneType" else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr) if not isinstance(value, float) else repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
