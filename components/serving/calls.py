"""Tool calls in the way that a model's chat template writes them, found in what the model says.

Calls are parsed as JSON and returned to the client; nothing runs them.
"""

import json
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

    def push(self, text: str) -> str:
        """Adds text; returns what is certainly said."""
        self._held += text
        if self._calling:
            return ""
        place = self._held.find(self.form.mark)
        if place < 0:
            longest = min(len(self.form.mark) - 1, len(self._held))
            place = len(self._held) - next(
                (n for n in range(longest, 0, -1) if self.form.mark.startswith(self._held[-n:])), 0
            )
        else:
            self._calling = True
        said, self._held = self._held[:place], self._held[place:]
        return said

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """The rest of what is said, and the calls; if they cannot be parsed, their text counts as said."""
        calls: list[dict[str, Any]] = []
        rest = self._held.strip()
        while rest:
            if self.form.mark:
                if not rest.startswith(self.form.mark):
                    break
                rest = rest[len(self.form.mark) :].lstrip()
            value, end = _decoded(rest, 0) if rest[:1] in ("{", "[") else (None, 0)
            found = [self._call(one) for one in (value if isinstance(value, list) else [value])]
            if not found or None in found:
                break
            calls += [call for call in found if call]
            rest = rest[end:].lstrip().removeprefix(self.form.closing.strip()).lstrip()
        return (self._held, []) if not calls else (rest, calls)

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
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or tool["type"] != "function":
            expected = '{"type": "function", "function": {"name": …}}'
            raise invalid(f"tools[{number}]: expected {expected}", f"tools[{number}]")
    return [{"type": "function", "function": tool["function"]} for tool in tools]


def _decoded(text: str, start: int) -> tuple[Any, int]:
    """The JSON value at `start` and its end; (None, start) if there is none."""
    try:
        return DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start
