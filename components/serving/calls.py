"""Tool calls in the way that a model's chat template writes them, found in what the model says.

Calls are parsed as JSON and returned to the client; nothing runs them.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from components.data.records.strict_json import DECODER
from components.serving.api_errors import invalid
from components.tokenizer.codec import TokenizerError
from components.tokenizer.tokenizer import Tokenizer

NAME, KEY = "probe_name", "probe_key"
PROBE = {"type": "function", "id": "probe0000", "function": {"name": NAME, "arguments": {KEY: "probe"}}}


class CallFormat(NamedTuple):
    """opening and closing: the texts around a call's JSON; name, arguments: its keys; listed: it is a list of calls."""

    opening: str
    closing: str
    name: str
    arguments: str
    listed: bool

    @property
    def mark(self) -> str:
        """What a call starts with, without white space; "" if it is only JSON."""
        return self.opening.strip()


def format_of(tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]]) -> CallFormat:
    """The format of calls in the tokenizer's template. Raises ApiError if it writes none, or not as JSON."""
    try:
        ids = tokenizer.answer({"role": "assistant", "content": "", "tool_calls": [PROBE]}, list(tools))
    except TokenizerError as error:
        raise invalid(f"this model's chat template cannot write tool calls: {error}", "tools") from None
    stop = next((place for place, token in enumerate(ids) if token in tokenizer.stop_ids), len(ids))
    text = tokenizer.decode(ids[:stop], skip_special=False)
    for start in (place for place, character in enumerate(text) if character in "[{"):
        value, end = _decoded(text, start)
        listed = isinstance(value, list) and len(value) == 1
        call = value[0] if listed else value
        if isinstance(call, dict) and NAME in call.values():
            names = [key for key, item in call.items() if item == NAME]
            arguments = [key for key, item in call.items() if isinstance(item, dict) and KEY in item]
            if arguments:
                return CallFormat(text[:start], text[end:], names[0], arguments[0], listed)
    raise invalid("this model's chat template does not write tool calls as JSON, so they cannot be found", "tools")


class CallReader:
    """Divides the text of one answer into what is said and calls; texts arrive in pieces."""

    def __init__(self, form: CallFormat) -> None:
        self.form = form
        self._held = ""
        self._calling = not form.mark  # without a mark, only the whole answer shows whether it is a call
        # The mark can also be a word of the text: it opens a call only before JSON.
        opening = re.compile(re.escape(form.mark) + r"\s*(?=[\[{])")
        self._opened = opening.search if form.mark else opening.match
        self._can_open = re.compile(re.escape(form.mark) + r"\s*\Z").search

    def push(self, text: str) -> str:
        """Adds text; returns what is certainly said."""
        self._held += text
        if self._calling:
            return ""
        opening = self._opened(self._held)
        self._calling = opening is not None
        if opening or (opening := self._can_open(self._held)):
            place = opening.start()
        else:
            longest = min(len(self.form.mark) - 1, len(self._held))
            place = len(self._held) - next(
                (n for n in range(longest, 0, -1) if self.form.mark.startswith(self._held[-n:])), 0
            )
        said, self._held = self._held[:place], self._held[place:]
        return said

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """The rest of what is said, and the calls; what cannot be parsed as a call counts as said."""
        calls: list[dict[str, Any]] = []
        held, said, start = self._held, "", 0
        opening = self._opened(held)
        while opening:
            value, end = _decoded(held, opening.end())
            made = [self._call(one) for one in (value if isinstance(value, list) else [value])]
            if made and None not in made:
                calls += [call for call in made if call]
                said += held[start : opening.start()]
                rest = held[end:].lstrip().removeprefix(self.form.closing.strip()).lstrip()
                start = end = len(held) - len(rest)
            elif not self.form.mark:
                break
            opening = self._opened(held, max(end, opening.end()))
        return said + held[start:], calls

    def _call(self, value: Any) -> dict[str, Any] | None:
        """A call as the official API writes it, or None."""
        if not isinstance(value, dict) or not isinstance(value.get(self.form.name), str):
            return None
        arguments = value.get(self.form.arguments, {})
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        function = {"name": value[self.form.name], "arguments": text}
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def checked(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """The tools of a request. Raises ApiError for one that is not a function with a name."""
    for number, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if (
            not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
            or tool.get("type") != "function"
        ):
            expected = '{"type": "function", "function": {"name": …}}'
            raise invalid(f"tools[{number}]: expected {expected}, got {json.dumps(tool):.80}", f"tools[{number}]")
        parameters = function.get("parameters")
        if not isinstance(parameters, dict | None):
            name = f"tools[{number}].function.parameters"
            raise invalid(f"{name}: expected a JSON schema, an object, got {json.dumps(parameters):.40}", name)
    return [{"type": "function", "function": tool["function"]} for tool in tools]


def _decoded(text: str, start: int) -> tuple[Any, int]:
    """The JSON value at `start` and its end; (None, start) if there is none."""
    try:
        return DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start
