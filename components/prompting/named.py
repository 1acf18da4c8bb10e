"""Techniques by name, as configs and requests write them: {"name": "self_consistency", "samples": 9}."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError, validate_call

from components.prompting.best_of import BestOfN, Score
from components.prompting.chain_of_thought import ChainOfThought
from components.prompting.constrained import Constrained
from components.prompting.few_shot import FewShot
from components.prompting.reflection import Reflection
from components.prompting.retrieval import Retrieval
from components.prompting.self_consistency import SelfConsistency
from components.prompting.technique import Technique
from components.prompting.tool_use import ToolUse
from components.prompting.tools import Tool, calculator, lookup

TECHNIQUES: dict[str, type] = {
    "few_shot": FewShot,
    "chain_of_thought": ChainOfThought,
    "self_consistency": SelfConsistency,
    "best_of_n": BestOfN,
    "reflection": Reflection,
    "constrained": Constrained,
    "tool_use": ToolUse,
    "retrieval": Retrieval,
}
TOOLS: dict[str, Callable[..., Tool]] = {"calculator": calculator, "lookup": lookup}


def techniques_of(given: Iterable[Mapping[str, Any]], scorer: Callable[[str], Score]) -> list[Technique]:
    """The techniques with these names and settings. scorer: what the score of best_of_n becomes, from its name.

    Raises ValueError, naming the technique, for an unknown name or setting and for an invalid value.
    """
    return [_technique(dict(one), scorer) for one in given]


def _technique(settings: dict[str, Any], scorer: Callable[[str], Score]) -> Technique:
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in TECHNIQUES:
        raise ValueError(f"technique: got the name {name!r:.40}, expected one of {', '.join(TECHNIQUES)}")
    kind = TECHNIQUES[name]
    expected = [field.name for field in fields(kind)]
    for key in settings:
        if key not in expected:
            near = difflib.get_close_matches(key, expected, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(expected)}"
            raise ValueError(f"{name}: it has no setting {key!r:.40}; {hint}")
    if "score" in settings:
        settings["score"] = scorer(str(settings["score"]))
    if isinstance(settings.get("tools"), list):
        settings["tools"] = [_tool(tool) for tool in settings["tools"]]
    try:
        made: Technique = TypeAdapter(kind).validate_python(settings)
    except ValidationError as error:
        if error.errors()[0]["type"] == "value_error":  # the technique's own message
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        raise ValueError(f"{name}: {_first(error)}") from None
    return made


def _first(error: ValidationError) -> str:
    """Where and what the first error is."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"


def _tool(given: Any) -> Tool:
    """A tool by its name, or by {"name": …} with its settings."""
    settings = dict(given) if isinstance(given, Mapping) else {"name": given}
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in TOOLS:
        raise ValueError(f"tool_use: tools: got {name!r:.40}, expected {' or '.join(TOOLS)}")
    try:
        return validate_call(TOOLS[name])(**settings)
    except ValidationError as error:
        raise ValueError(f"tool_use: {name}: {_first(error)}") from None
