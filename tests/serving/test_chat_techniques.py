"""Techniques in the terminal's chat."""

import pytest

from components.prompting.self_consistency import SelfConsistency
from components.serving.chat_techniques import ChatTechniques, settings_of
from components.serving.session import ChatSession, Turn
from tests.kit import tiny_models, tool_templates


@pytest.mark.parametrize(
    "line, settings",
    [
        ("", []),
        ("reflection", [{"name": "reflection"}]),
        (
            "self_consistency samples=9 extract=number",
            [{"name": "self_consistency", "samples": 9, "extract": "number"}],
        ),
        (
            "chain_of_thought 'marker=So: ' | constrained choices='[\"a\", \"b\"]'",
            [{"name": "chain_of_thought", "marker": "So: "}, {"name": "constrained", "choices": ["a", "b"]}],
        ),
    ],
)
def test_a_line_names_techniques_with_their_settings(line, settings):
    assert settings_of(line) == settings


@pytest.mark.parametrize("line", ["reflection 3", "reflection 'rounds=1"])
def test_a_line_that_cannot_be_divided_is_refused(line):
    with pytest.raises(ValueError, match="expected NAME=VALUE|No closing quotation"):
        settings_of(line)


def test_an_answer_goes_through_the_techniques_of_the_session_until_they_are_removed(small_tokenizer):
    session = ChatSession(
        tiny_models.random_model(small_tokenizer.vocab_size), small_tokenizer, seed=3, temperature=1.0, max_new_tokens=4
    )
    session.techniques.set("self_consistency samples=3")
    assert session.techniques.techniques == [SelfConsistency(3)]
    text = "".join(session.ask("hi").chunks)
    assert session.turns == [Turn("hi", text)] and session.trace[0].technique == "self_consistency"
    assert session.spent.read > 0 and 3 <= session.spent.sampled <= 3 * 4
    again = "".join(session.retry().chunks)
    assert session.turns == [Turn("hi", again)] and again != text
    session.techniques.set("")
    list(session.ask("hi").chunks)
    assert session.trace == () and session.spent is None and len(session.turns) == 2


def test_a_conversation_that_cannot_be_answered_is_not_remembered(small_tokenizer):
    session = ChatSession(
        tiny_models.random_model(small_tokenizer.vocab_size), small_tokenizer, seed=3, temperature=0.0
    )
    session.techniques.set("self_consistency")
    with pytest.raises(ValueError, match="5 samples at temperature 0"):
        list(session.ask("hi").chunks)
    assert session.turns == []


def test_a_technique_that_does_not_exist_leaves_the_others(small_tokenizer):
    techniques = ChatTechniques(tiny_models.random_model(small_tokenizer.vocab_size), small_tokenizer)
    techniques.set("reflection")
    before = techniques.techniques
    with pytest.raises(ValueError, match="expected one of few_shot"):
        techniques.set("telepathy")
    assert techniques.techniques is before


def test_a_constrained_answer_does_not_start_with_the_thinking_that_the_prompt_begins(small_tokenizer):
    pytest.importorskip("llguidance")
    thinks = tiny_models.with_template(
        small_tokenizer, tool_templates.CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    )
    session = ChatSession(tiny_models.random_model(thinks.vocab_size, max_position_embeddings=256), thinks, seed=3)
    session.techniques.set('constrained choices=\'["yes", "no"]\'')
    assert "".join(session.ask("hi").chunks) in ("yes", "no")
