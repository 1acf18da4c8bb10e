"""Answers held to a grammar, with tokenizers made here and elsewhere."""

import json

import pytest
import torch

from components.serving.api_errors import ApiError
from components.serving.constraint import Grammars, tool_schema
from components.tokenizer.tokenizer import Tokenizer
from tests.kit import foreign_tokenizers

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def sampled(tokenizer, size, constrain, seed, most=200):
    """The ids of a random answer within a constraint; it ends with a stop token."""
    random, constraint, ids = torch.Generator().manual_seed(seed), constrain(), []
    while not ids or ids[-1] not in tokenizer.stop_ids:
        allowed = constraint.allowed()
        assert allowed.shape == (size,) and allowed.any()
        choices = allowed.nonzero().flatten()
        ids.append(int(choices[torch.randint(len(choices), (), generator=random)]))
        constraint.accept(ids[-1])
        assert len(ids) < most
    return ids[:-1]


@pytest.mark.parametrize("kind", ["own", "qwen2", "llama2"])
def test_random_answers_within_a_schema_follow_it(kind, small_tokenizer, tmp_path):
    tokenizer = small_tokenizer if kind == "own" else Tokenizer.load(getattr(foreign_tokenizers, kind)(tmp_path))
    size = tokenizer.vocab_size + 7  # a padded vocabulary
    constrain = Grammars(tokenizer, size).of_schema(SCHEMA)
    for seed in range(3):
        answer = json.loads(tokenizer.decode(sampled(tokenizer, size, constrain, seed)))
        assert set(answer) == {"name", "age"} and len(answer["name"]) <= 5 and 0 <= answer["age"] <= 9


def test_special_tokens_and_unused_ids_are_not_part_of_a_text(small_tokenizer):
    size = small_tokenizer.vocab_size + 7
    constraint = Grammars(small_tokenizer, size).of_format({"type": "regex", "regex": "(.|\n)*"})()
    allowed = set(constraint.allowed().nonzero().flatten().tolist())
    assert allowed & set(small_tokenizer.codec.special_ids.values()) <= set(small_tokenizer.stop_ids) <= allowed
    assert max(allowed) < small_tokenizer.vocab_size


@pytest.mark.parametrize("choices", [["a|b", "(c)"], ["x{2}", "[y]", "\\d", "z."], ["#1", "a&b", "~", "-", "é/"]])
def test_choices_are_taken_as_they_are(small_tokenizer, choices):
    constrain = Grammars(small_tokenizer, small_tokenizer.vocab_size).of_format({"type": "choice", "choices": choices})
    said = {
        small_tokenizer.decode(sampled(small_tokenizer, small_tokenizer.vocab_size, constrain, seed))
        for seed in range(8)
    }
    assert said <= set(choices)


@pytest.mark.parametrize(
    "form", [{"type": "xml"}, {}, {"type": "json_object", "x": 1}, {"type": "choice", "choices": []}]
)
def test_a_format_that_is_not_known_is_refused(small_tokenizer, form):
    with pytest.raises(ApiError, match="response_format"):
        Grammars(small_tokenizer, small_tokenizer.vocab_size).of_format(form)


SIDES = {  # refers to definitions under both of their names, to itself, and has a property and values named like $ref
    "type": "object",
    "$defs": {"side": {"enum": ["left", "right"]}},
    "definitions": {"step": {"$ref": "#/$defs/side"}},
    "properties": {
        "step": {"$ref": "#/definitions/step"},
        "then": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
        "const": {"$ref": "#/properties/step"},
        "$ref": {"const": {"$ref": "#/no/reference"}},
    },
    "required": ["step", "then", "const", "$ref"],
    "additionalProperties": False,
}
NUMBERS = {
    "type": "object",
    "$defs": {"side": {"enum": [1, 2]}},
    "properties": {"step": {"$ref": "#/$defs/side"}},
    "required": ["step"],
    "additionalProperties": False,
}


def tool(name, parameters):
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("tools", [[("go", SIDES)], [("go", SIDES), ("count", NUMBERS)]])
def test_tools_keep_their_own_definitions(small_tokenizer, tools, listed):
    schema = tool_schema([tool(*one) for one in tools], "name", "arguments", listed=listed)
    constrain = Grammars(small_tokenizer, small_tokenizer.vocab_size).of_calls("", schema, "")
    names = set()
    for seed in range(8):
        said = small_tokenizer.decode(sampled(small_tokenizer, small_tokenizer.vocab_size, constrain, seed, most=2000))
        call = json.loads(said)[0] if listed else json.loads(said)
        names.add(call["name"])
        if call["name"] == "go":
            arguments = call["arguments"]
            assert {arguments["step"], arguments["const"]} <= {"left", "right"}
            assert arguments["$ref"] == {"$ref": "#/no/reference"}
            assert arguments["then"] is None or arguments["then"]["step"] in ("left", "right")
        elif call["name"] == "count":
            assert call["arguments"]["step"] in (1, 2)
    assert names <= {name for name, _ in tools} and (len(tools) == 1 or len(names) > 1)


def test_a_schema_of_a_tool_that_cannot_be_followed_is_an_error_in_tools(small_tokenizer):
    bad = tool_schema([tool("go", {"type": "object", "properties": {"x": {"$ref": "#/$defs/none"}}})], "n", "a")
    with pytest.raises(ApiError, match="Invalid schema for tools") as error:
        Grammars(small_tokenizer, small_tokenizer.vocab_size).of_calls("", bad, "")
    assert error.value.param == "tools"
