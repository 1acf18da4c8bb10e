"""Constrained output: the answer is held to a format while it is sampled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from components.prompting.technique import Answers, Generate, Query


@dataclass(frozen=True)
class Constrained:
    """Holds answers to a JSON schema, a regular expression or one of several choices, of which exactly one is given.

    Tokens that would leave the format are not sampled, so an answer keeps to it unless it is cut off.
    Raises ValueError unless exactly one format is given, and for a query that has another already.
    """

    json_schema: Mapping[str, Any] | None = None
    regex: str | None = None
    choices: Sequence[str] | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("json_schema", "regex", "choices") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"constrained: expected one of json_schema, regex and choices, got {given or 'none'}")

    @property
    def response_format(self) -> dict[str, Any]:
        """The format as the API names it."""
        if self.json_schema is not None:
            return {"type": "json_schema", "json_schema": {"schema": dict(self.json_schema)}}
        if self.regex is not None:
            return {"type": "regex", "regex": self.regex}
        return {"type": "choice", "choices": list(self.choices or ())}

    def __call__(self, generate: Generate, query: Query) -> Answers:
        if query.response_format not in (None, {"type": "text"}):
            raise ValueError(f"constrained: the query has a response_format already, {dict(query.response_format)}")
        return generate(replace(query, response_format=self.response_format))
