"""tokenizer=tools: a template that writes the tools, a call as JSON, and its result."""

import pytest

from components.serving.calls import CallFormat, format_of
from components.serving.generator import answer_of
from components.tokenizer.template import DEFAULT_TEMPLATE
from components.tokenizer.tokenizer import Tokenizer
from components.world import exercise_texts as texts
from tests.kit.composed_configs import compose_config

CALL = texts.call("calculator", "expression", "3+4")
TALK = [
    {"role": "user", "content": "what is 3+4 ?"},
    CALL,
    {"role": "tool", "content": "7"},
    {"role": "assistant", "content": "the sum is 7 ."},
]


@pytest.fixture(scope="module")
def writer(tokenizer) -> Tokenizer:
    template = compose_config(["stage=tokenizer", "tokenizer=tools"]).tokenizer.chat_template
    return Tokenizer(tokenizer.codec, template)


def test_a_call_and_its_result_are_written_and_only_the_assistants_part_is_learned(writer):
    ids, mask = writer.render(TALK, texts.tools())
    assert writer.decode(ids, skip_special=False) == (
        "<bos><|system|>tools : calculator lookup<|end|><|user|>what is 3+4 ?<|end|>"
        '<|assistant|>call {"name": "calculator", "arguments": {"expression": "3+4"}}<|end|>'
        "<|user|>result : 7<|end|><|assistant|>the sum is 7 .<|end|>"
    )
    learned = [token for token, target in zip(ids, mask, strict=True) if target]
    assert writer.decode(learned, skip_special=False) == (
        'call {"name": "calculator", "arguments": {"expression": "3+4"}}<|end|>the sum is 7 .<|end|>'
    )


def test_the_server_finds_the_call_in_what_the_model_says(writer):
    form = format_of(writer, texts.tools())
    assert form == CallFormat("call ", "", "name", "arguments", False)
    answer = answer_of('call {"name": "lookup", "arguments": {"text": "fev"}}', True, form)
    (call,) = answer.calls
    assert (answer.text, call.name, call.arguments) == ("", "lookup", '{"text": "fev"}')


def test_a_conversation_without_tools_is_written_as_by_the_default_template(writer, tokenizer):
    plain = [{"role": "system", "content": "be short ."}, TALK[0], TALK[-1]]
    assert writer.render(plain) == Tokenizer(tokenizer.codec, DEFAULT_TEMPLATE).render(plain)
    assert writer.render_prompt(plain[:2]) == tokenizer.render_prompt(plain[:2])
