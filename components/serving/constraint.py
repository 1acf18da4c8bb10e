"""Answers held to a grammar (JSON, a JSON schema, a regular expression, choices) by llguidance."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from components.serving.api_errors import invalid
from components.serving.rows import Constraint
from components.system import installing
from components.tokenizer.tokenizer import Tokenizer

COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as Python's json writes it
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # keywords: schemas by name
VALUES = ("const", "enum", "default", "examples")  # keywords whose values are no schemas
KINDS = ("text", "json_object", "json_schema", "regex", "choice")


class Grammars:
    """Grammars for one tokenizer and a model's vocabulary of `size` ids, which can be larger."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.tokenizer, self.size = tokenizer, size

    def of_format(self, response_format: Mapping[str, Any] | None) -> Callable[[], Constraint] | None:
        """What makes the constraint of one sample, or None for plain text. Besides the official API's types, regex
        ({"regex"}) and choice ({"choices": […]}). Raises ApiError for a schema that cannot be followed."""
        given = dict({"type": "text"} if response_format is None else response_format)
        kind = given.pop("type", None)
        if kind not in KINDS:
            names = ", ".join(KINDS)
            raise invalid(f"response_format.type: expected one of {names}, got {kind!r:.40}", "response_format.type")
        if kind == "text" or kind == "json_object":
            _expect(given, set())
            return None if kind == "text" else self.of_schema({"type": "object"})
        if kind == "regex":
            _expect(given, {"regex"})
            return self.of_grammar(self._library.LLMatcher.grammar_from_regex(_text(given, "regex")))
        if kind == "choice":
            _expect(given, {"choices"})
            choices = given.get("choices")
            if not isinstance(choices, list) or not choices or not all(isinstance(c, str) and c for c in choices):
                raise invalid("response_format.choices: expected a list of texts", "response_format.choices")
            pattern = "|".join(_escaped(choice) for choice in choices)
            return self.of_grammar(self._library.LLMatcher.grammar_from_regex(pattern))
        _expect(given, {"json_schema"})
        wanted = given.get("json_schema")
        if not isinstance(wanted, dict) or not isinstance(wanted.get("schema"), dict):
            raise _bad_schema("expected response_format.json_schema.schema, an object")
        return self.of_schema(wanted["schema"])

    def of_schema(self, schema: Mapping[str, Any]) -> Callable[[], Constraint]:
        """JSON that a schema allows, on one line."""
        try:
            return self.of_grammar(self._library.LLMatcher.grammar_from_json_schema(dict(schema), overrides=COMPACT))
        except ValueError as error:
            raise _bad_schema(str(error)) from None

    def of_calls(self, opening: str, schema: Mapping[str, Any], closing: str) -> Callable[[], Constraint]:
        """JSON that a schema of tool_schema allows, between texts that can contain special tokens."""
        body = json.dumps(dict(schema) | {"x-guidance": COMPACT})
        lark = f"start: {self._literal(opening)} call {self._literal(closing)}\ncall: %json {body}"
        return self.of_grammar(self._library.LLMatcher.grammar_from_lark(lark), "tools")

    def of_grammar(self, grammar: str, field: str = "response_format") -> Callable[[], Constraint]:
        """llguidance's own kind of grammar. field: of the request that it comes from. Raises ApiError if it is not a
        grammar."""
        error = self._library.LLMatcher.validate_grammar(grammar, self._tokens)
        if error and not error.startswith("WARNING"):
            raise _bad_schema(" ".join(error.split())[:300], field)
        return lambda: _Matched(self._library.LLMatcher(self._tokens, grammar, log_level=0), self)

    def _literal(self, text: str) -> str:
        specials = self.tokenizer.codec.special_ids
        pattern = "(" + "|".join(map(re.escape, sorted(specials, key=len, reverse=True))) + ")"
        parts = [part for part in re.split(pattern, text) if part]
        return " ".join(f"<[{specials[part]}]>" if part in specials else json.dumps(part) for part in parts)

    @cached_property
    def _library(self) -> Any:
        try:
            import llguidance
        except ModuleNotFoundError:
            message = installing.missing("response_format, or a tool_choice that forces a call,", "llguidance", "serve")
            raise invalid(message) from None
        return llguidance

    @cached_property
    def _tokens(self) -> Any:
        wrapper = self._library.TokenizerWrapper(_Pieces(self.tokenizer, self.size))
        return self._library.LLTokenizer(wrapper, eos_token=list(self.tokenizer.stop_ids))


class _Pieces:
    """The vocabulary as llguidance reads it."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        codec = tokenizer.codec
        self.codec = codec
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.special_token_ids = sorted(codec.special_ids.values())
        self.tokens = [codec.bytes_of(token, skip_special=False) for token in range(size)]

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of a text inside another: without the space that some tokenizers put before a text."""
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        if not self.codec.leads_with_space:
            return self.codec.encode(text)
        ids, read, place = self.codec.encode(f"\n{text}"), 0, 0
        while read < len(" \n"):
            read += len(self.codec.bytes_of(ids[place], skip_special=False))
            place += 1
        return ids[place:]


class _Matched:
    """One sample's place in a grammar."""

    def __init__(self, matcher: Any, grammars: Grammars) -> None:
        self.matcher, self.grammars = matcher, grammars

    def allowed(self) -> Tensor:
        """See Constraint; after an error of the matcher, only the tokens that stop."""
        mask = torch.zeros(self.grammars.size, dtype=torch.bool)
        bias = torch.frombuffer(bytearray(self.matcher.compute_logit_bias()), dtype=torch.uint8)
        mask[: len(bias)] = bias[: len(mask)] > 0
        if self.matcher.is_error() or not mask.any():
            mask[list(self.grammars.tokenizer.stop_ids)] = True
        return mask

    def accept(self, token: int) -> None:
        self.matcher.consume_token(token)


def _escaped(text: str) -> str:
    """A regular expression for the text itself."""
    return "".join("\\" + character if character in r"\.+*?()|[]{}^$#&-~/" else character for character in text)


def _expect(given: Mapping[str, Any], fields: set[str]) -> None:
    for name in given:
        if name not in fields:
            path = f"response_format.{name}"
            raise invalid(f"Unrecognized request argument supplied: {path}", path, "unknown_parameter")


def _text(given: Mapping[str, Any], name: str) -> str:
    if not isinstance(given.get(name), str):
        raise invalid(f"response_format.{name}: expected a text", f"response_format.{name}")
    return str(given[name])


def _bad_schema(message: str, field: str = "response_format") -> Exception:
    return invalid(f"Invalid schema for {field}: {message}", field, "invalid_json_schema")


def tool_schema(
    tools: Sequence[Mapping[str, Any]], name_key: str, arguments_key: str, *, listed: bool = False
) -> dict[str, Any]:
    """The JSON schema of a call of one of the tools; listed: of a list of one call.

    Each tool's parameters become a definition of the whole schema, since their references start at their own root.
    """
    calls, definitions = [], {}
    for number, tool in enumerate(tools):
        function, key = tool["function"], f"tool{number}"
        definitions[key] = _moved(function.get("parameters") or {"type": "object"}, f"#/$defs/{key}")
        calls.append(
            {
                "type": "object",
                "properties": {name_key: {"const": function["name"]}, arguments_key: {"$ref": f"#/$defs/{key}"}},
                "required": [name_key, arguments_key],
                "additionalProperties": False,
            }
        )
    call = calls[0] if len(calls) == 1 else {"anyOf": calls}
    whole = {"type": "array", "items": call, "minItems": 1, "maxItems": 1} if listed else call
    return whole | {"$defs": definitions}


def _moved(schema: Any, root: str) -> Any:
    """A schema, or a list of schemas, whose references to its own root ("#") lead to `root` instead."""
    if isinstance(schema, list):
        return [_moved(one, root) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {}
    for keyword, value in schema.items():
        if keyword == "$ref" and isinstance(value, str) and value.startswith("#"):
            value = root + value[1:]
        elif keyword in NAMED and isinstance(value, dict):
            value = {name: _moved(one, root) for name, one in value.items()}
        elif keyword not in VALUES:
            value = _moved(value, root)
        made[keyword] = value
    return made
