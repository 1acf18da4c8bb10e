"""Steps before the answer."""

import pytest

from components.prompting.chain_of_thought import ChainOfThought
from components.prompting.technique import Step
from tests.kit.scripted import Scripted, question


def test_the_instruction_follows_the_question_and_the_answer_the_marker():
    model = Scripted("Answer: no, 4 + 3 = 7, and 7 + 2 = 9. Answer: 9")
    (answer,), _ = ChainOfThought(marker="Answer:")(model, question("4 + 3 + 2 ?"))
    assert model.queries[0].messages[-1]["content"] == "4 + 3 + 2 ?\nThink step by step."
    assert answer.text == "9"
    assert answer.trace == (Step("chain_of_thought", "Answer: no, 4 + 3 = 7, and 7 + 2 = 9."),)


def test_an_answer_without_the_marker_or_for_no_marker_is_whole():
    for technique, text in ((ChainOfThought(marker="So:"), "9"), (ChainOfThought(), "So: 9")):
        (answer,), _ = technique(Scripted(text), question())
        assert answer.text == text and not answer.trace


def test_an_empty_marker_is_refused():
    with pytest.raises(ValueError, match="marker: expected a text that is not empty"):
        ChainOfThought(marker="")
