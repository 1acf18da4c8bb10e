"""Checks, before Hydra sees them, choices from config groups that make it fail with a traceback."""

import re
from collections.abc import Sequence

from components.launch import mistyped

OPTIONAL = ("callbacks", "debug", "experiment", "gate", "logger", "lora")  # config groups that a run can do without
NAMELESS = {"", "''", '""', "null", "???"}


def misnamed_choice(arguments: Sequence[str]) -> str | None:
    """The message for a choice from a config group that Hydra rejects with a traceback: a boolean or a number, null for
    a required group or among the values of a sweep. Also for a run or a path without a name. None if all is well."""
    for argument in arguments:
        if _is_unnamed(argument):
            return f"{argument}: expected a name. Leave the argument out to use the default"
        group, equals, value = argument.removeprefix("~").partition("=")
        if not equals and argument == group or not re.fullmatch(r"\w+", group):
            continue
        choices = mistyped.choices(group)
        expected = f"{argument}: expected one of {', '.join(choices)}"
        none = argument.startswith("~") or value == "null"
        if choices and none and group not in OPTIONAL:
            return expected
        if choices and not none and "null" in value.split(","):
            return f"{argument}: null cannot be part of a sweep; run {group}=null by itself"
        if choices and re.fullmatch(r"(?i)true|false|[-+]?(\d[\d_.e+-]*|inf|nan)", value):
            return expected + (", or null for none" if group in OPTIONAL else "")
    return None


def without_nulls(arguments: Sequence[str]) -> list[str]:
    """The arguments with `group=null` in Hydra's form, ~group."""
    nulls = {f"{group}=null": f"~{group}" for group in OPTIONAL}
    return [nulls.get(argument, argument) for argument in arguments]


def _is_unnamed(argument: str) -> bool:
    """Whether an argument removes the name of the run or of a path, or has an empty one among its values."""
    key, _, value = argument.lstrip("+~").partition("=")
    is_name = re.fullmatch(r"run|paths\.\w+", key) is not None
    return is_name and (argument.startswith("~") or bool(NAMELESS & set(value.split(","))))
