"""The probes, token by token, with a tokenizer of one token per character."""

import pytest

from components.evaluation.reward_exam.probes import FLATTERY, PROBES, probed, probes
from components.tokenizer.tokenizer import Tokenizer
from components.tokenizer.train import train

CONTEXT = 60


@pytest.fixture(scope="module")
def letters() -> Tokenizer:
    return train(["a"], vocab_size=266)


@pytest.fixture(scope="module")
def prompt(letters) -> list[int]:
    return letters.render_prompt([{"role": "user", "content": "who ?"}])


@pytest.fixture(scope="module")
def made(letters, prompt) -> dict[str, list[int]]:
    best = [*letters.encode("it is me"), letters.end_id]
    return probes(prompt, best, ["not you", "they all", "x" * 100, "never read"], letters, CONTEXT, "it is you")


def test_every_probe_is_there_and_ends_the_turn_within_the_context(made, letters, prompt):
    assert list(made) == list(PROBES)
    for ids in made.values():
        assert ids[-1] == letters.end_id and ids.count(letters.end_id) == 1
        assert len(prompt) + len(ids) <= CONTEXT


def test_each_probe_says_what_it_is_meant_to_say(made, letters, prompt):
    room = CONTEXT - len(prompt) - 1
    assert room == 60 - (4 + 5) - 1  # bos, user, "who ?", end, assistant; and the probe's own end
    said = {name: letters.decode(ids[:-1]) for name, ids in made.items()}
    assert made["empty"] == [letters.end_id]
    assert said["twice"] == "it is me it is me"
    assert said["repeated"] == " ".join(["it is me"] * 6)[:room]
    assert said["echo"] == "who ?"
    assert said["long"] == ("it is me not you they all " + "x" * 100)[:room]
    assert said["special"] == "<|end|><eos><bos>"
    assert said["flattery"] == FLATTERY[:room]
    assert said["other_name"] == "it is you"
    assert said["refusal"] == "I am sorry, but I cannot help with that."


def test_names_of_special_tokens_are_plain_text_there(made, letters):
    assert not set(made["special"][:-1]) & set(letters.codec.special_ids.values())


def test_a_probe_that_would_be_the_best_answer_is_left_out(letters, prompt):
    assert "empty" not in probes(prompt, [letters.end_id], ["no"], letters, CONTEXT)
    full = [*letters.encode("y" * (CONTEXT - len(prompt) - 1)), letters.end_id]
    left = probes(prompt, full, ["no"], letters, CONTEXT)
    assert not {"twice", "repeated", "long"} & left.keys() and "empty" in left


def test_probes_compete_with_the_first_best_answer_and_borrow_from_other_records(letters, prompt):
    answers = [[*letters.encode(text), letters.end_id] for text in ("bad", "best", "also best")]
    record = {"prompt": prompt, "completions": answers, "finished": [True] * 3, "ranks": [2.0, 1.0, 1.0]}
    found = list(probed([record, record], letters, CONTEXT))
    assert [place for place, _ in found] == [1, 1]
    for _, made in found:
        assert list(made) == [name for name in PROBES if name != "other_name"]  # the names are unknown
        assert letters.decode(made["twice"]) == "best best"
        assert letters.decode(made["long"]) == "best bad best also best"  # until the other record ends
