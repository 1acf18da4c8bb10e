"""What a model can call: a calculator, and a look-up in documents. Tools read their arguments and run none of them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.prompting.arithmetic import value_of
from components.prompting.bm25 import Index

NOTHING = "nothing found"


@dataclass(frozen=True)
class Tool:
    """A function by its name; parameters: JSON schemas of its arguments, all of them texts and required.

    run(arguments) -> str: the result. Raises ValueError for arguments that it cannot read.
    """

    name: str
    description: str
    parameters: Sequence[str]
    run: Callable[..., str]

    @property
    def schema(self) -> dict[str, Any]:
        """The tool as chat records and the API describe it."""
        properties = {name: {"type": "string"} for name in self.parameters}
        parameters = {"type": "object", "properties": properties, "required": list(self.parameters)}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}

    def result(self, arguments: Mapping[str, Any]) -> str:
        """What the model reads: the result, or what is wrong with its call."""
        if set(arguments) != set(self.parameters) or not all(isinstance(one, str) for one in arguments.values()):
            return f"error: expected the arguments {', '.join(self.parameters)}, as texts, got {json.dumps(arguments)}"
        try:
            return self.run(**arguments)
        except ValueError as error:
            return f"error: {error}"


def calculator() -> Tool:
    """Arithmetic, see arithmetic.value_of."""
    return Tool("calculator", "the value of an arithmetic expression", ["expression"], value_of)


def lookup(documents: Sequence[str]) -> Tool:
    """The document that matches a text best."""
    index = Index(documents)
    run = lambda text: next(iter(index.best(text, 1)), NOTHING)
    return Tool("lookup", "the text about something", ["text"], run)
