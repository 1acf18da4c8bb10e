"""Answers held to a grammar, with tokenizers made here and elsewhere."""

import json

import pytest
import torch

from components.serving.api_errors import ApiError
from components.serving.constraint import Grammars
from components.tokenizer.tokenizer import Tokenizer
from tests.kit import foreign_tokenizers

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def sampled(tokenizer, size, constrain, seed):
    """The ids of a random answer within a constraint; it ends with a stop token."""
    random, constraint, ids = torch.Generator().manual_seed(seed), constrain(), []
    while not ids or ids[-1] not in tokenizer.stop_ids:
        allowed = constraint.allowed()
        assert allowed.shape == (size,) and allowed.any()
        choices = allowed.nonzero().flatten()
        ids.append(int(choices[torch.randint(len(choices), (), generator=random)]))
        constraint.accept(ids[-1])
        assert len(ids) < 200
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
