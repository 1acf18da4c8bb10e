"""Weighted sums of reward functions, worked by hand, and processes that score with a time limit."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

from components.rewards.function_call import Answered
from components.rewards.function_file import RewardError
from components.rewards.functions import FunctionReward
from components.rewards.reward import batch_of

SOURCE = """
import os, signal, sys, time

def right(texts, answer):
    return [None if a is None else float(t == a) for t, a in zip(texts, answer)]

def length(completions):
    return [len(c[0]["content"]) for c in completions]

def over(texts, *, most, least=0):
    return [float(least <= len(text) <= most) for text in texts]

def among(texts, *, choices):
    return [float(isinstance(choices, list) and text in choices) for text in texts]

def never(texts):
    return [None for _ in texts]

def slow(texts):
    print("heard on stdout")
    if texts[0] == "sleep":
        time.sleep(600)
    if texts[0] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if texts[0] == "leave":
        os._exit(3)
    if texts[0] == "raise":
        raise KeyError("no")
    return [len(texts) + os.getpid() / 1e9]
"""


def prompts(*answers):
    return [{"ids": [1], "prompt": [{"role": "user", "content": "?"}], "columns": {"answer": a}} for a in answers]


class Letters:
    """Ids are letters."""

    prefill = "<"

    def decode(self, ids):
        return "".join(map(chr, ids))


def asked(*texts: str) -> Answered:
    return Answered(
        [[{"role": "user", "content": "?"}]] * len(texts), texts, [[1]] * len(texts), [True] * len(texts), {}
    )


@pytest.fixture
def reward(tmp_path):
    (tmp_path / "r.py").write_text(SOURCE)
    made = []

    def make(functions, **how) -> FunctionReward:
        places = {name: {**value, "path": f"{tmp_path}/r.py:{name}"} for name, value in functions.items()}
        made.append(FunctionReward.of({"functions": places, **how}, "reward"))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_scores_are_the_weighted_sums_of_the_functions_that_apply(reward):
    """right counts 2, length −0.5: of "<a" 2·1 − 0.5·2 = 1, of "<bc" 2·0 − 0.5·3 = −1.5, of "<" −0.5·1 = −0.5."""
    several = reward({"right": {"weight": 2}, "length": {"weight": -0.5}})
    batch = batch_of(prompts("<a", "a", None), [[97], [98, 99], []], [True] * 3, Letters())
    scores = several.score(batch)
    assert scores.total.dtype == torch.float32 and scores.total.tolist() == [1.0, -1.5, -0.5]
    assert list(several.weights.items()) == [("right", 2), ("length", -0.5)]
    assert scores.parts[:, 1].tolist() == [2, 3, 1] and scores.parts[:2, 0].tolist() == [1, 0]
    assert scores.parts.isnan().nonzero().tolist() == [[2, 0]]


def test_shuffled_scores_are_those_of_other_responses_in_an_order_that_the_responses_decide(reward):
    """Lengths 1 to 9, each with its parts: the same numbers in another order, the same one for the same responses."""
    texts = [[97] * n for n in range(9)]
    batch = batch_of(prompts(*"abcdefghi"), texts, [True] * 9, Letters())
    control = reward({"length": {}, "right": {"weight": 0}}, shuffle=True).score(batch)
    assert sorted(control.total.tolist()) == list(range(1, 10)) != control.total.tolist()
    assert torch.equal(control.parts[:, 0], control.total)
    assert torch.equal(reward({"length": {}}, shuffle=True).score(batch).total, control.total)
    others = batch_of(prompts(*"abcdefghi"), [[98] * n for n in range(9)], [True] * 9, Letters())
    assert not torch.equal(reward({"length": {}}, shuffle=True).score(others).total, control.total)


def test_one_function_scores_as_it_says(reward, tmp_path):
    reward({"length": {}})  # writes the file
    alone = FunctionReward.of({"path": f"{tmp_path}/r.py:length"}, "reward")
    assert alone.score(batch_of(prompts(1, 2), [[97], []], [True] * 2, Letters())).total.tolist() == [2.0, 1.0]


@pytest.mark.parametrize("processes", [0, 1])
def test_arguments_in_the_settings_reach_the_function(reward, processes):
    """Lengths 2, 3 and 1: at most 2, and from 2 on."""
    batch = batch_of(prompts(1, 2, 3), [[97], [98, 99], []], [True] * 3, Letters())
    both = reward({"over": {"arguments": {"most": 2, "least": 2}}}, processes=processes)
    assert both.score(batch).total.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("processes", [0, 1])
def test_an_argument_can_be_a_list(reward, processes):
    """As a config has it: a node of OmegaConf."""
    chosen = OmegaConf.create({"choices": ["<a", "<b"]})
    batch = batch_of(prompts(1, 2), [[97], [99]], [True] * 2, Letters())
    assert reward({"among": {"arguments": chosen}}, processes=processes).score(batch).total.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"over": {}}, "needs most, which the records do not have"),
        ({"over": {"arguments": {"most": 2, "lest": 2}}}, r"has no argument 'lest'. Did you mean least\?"),
        (
            {"over": {"arguments": {"most": 2, "xyz": 2}}},
            "has no argument 'xyz'. It has most, least.",
        ),
        (
            {"over": {"arguments": {"most": 2, "answer": 2}}},
            "answer is both one of its arguments in the settings and a",
        ),
        ({"over": {"arguments": {"texts": []}}}, "texts is both one of its arguments in the settings and a"),
    ],
)
def test_arguments_that_a_function_cannot_take_are_refused(reward, functions, message):
    with pytest.raises(RewardError, match=message):
        reward(functions).score(batch_of(prompts("a"), [[97]], [True], Letters()))


def test_a_record_that_no_function_applies_to_is_an_error_that_names_it(reward):
    several = reward({"right": {}, "never": {}})
    batch = batch_of(prompts("a", None), [[97], [98]], [True] * 2, Letters())
    with pytest.raises(RewardError, match=r'no reward applies: right and never returned None; on(?s:.*)response: "<b"'):
        several.score(batch)


def test_columns_are_those_of_any_record_and_none_where_it_has_none():
    records = [{"ids": [1], "prompt": [], "columns": columns} for columns in ({"a": 1}, {"b": [2]}, {})]
    assert batch_of(records, [[]] * 3, [True] * 3, None).columns == {"a": [1, None, None], "b": [None, [2], None]}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"timeout": 1.0}, "reward.timeout=1.0 needs processes that can be stopped: set reward.processes"),
        ({"on_timeout": float("nan")}, "reward.on_timeout: got nan, expected error or a finite score"),
    ],
)
def test_settings_without_an_effect_are_refused(reward, how, message):
    with pytest.raises(RewardError, match=message):
        reward({"length": {}}, **how)


def test_processes_score_responses_one_at_a_time_and_keep_their_order(reward, capfd):
    pool = reward({"slow": {}, "length": {}}, processes=2)
    values = pool.values(asked(*"abcdefgh"))
    assert {round(value) for value in values["slow"]} == {1}  # texts in a call
    assert len({round(value % 1, 9) for value in values["slow"]}) <= 2 and values["length"] == [1.0] * 8
    assert pool.values(asked("abc", "a"))["length"] == [3.0, 1.0]
    assert os.getpid() / 1e9 not in {round(value % 1, 9) for value in values["slow"]}


def test_a_response_that_takes_too_long_counts_as_stated_and_its_process_is_replaced(reward, caplog):
    pool = reward({"slow": {}}, processes=2, timeout=1.0, on_timeout=-1.0)
    with caplog.at_level(logging.WARNING):
        values = pool.values(asked("a", "sleep", "b", "sleep", "c"))["slow"]
    assert [round(value) for value in values] == [1, -1, 1, -1, 1]
    assert "2 of 5 responses took longer than 1.0 s" in caplog.text


def test_by_default_it_is_an_error_with_the_record(reward):
    pool = reward({"slow": {}}, processes=1, timeout=0.5)
    with pytest.raises(
        RewardError, match=r'took longer than reward.timeout=0.5 s; on(?s:.*)response: "sleep"(?s:.*)on_ti'
    ):
        pool.values(asked("a", "sleep"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("die", "ended its process (signal 9)"),
        ("leave", "ended its process (exit status 3)"),
        ("raise", "KeyError: 'no'"),
    ],
)
def test_what_ends_a_function_is_told_with_the_record(reward, text, message):
    pool = reward({"slow": {}}, processes=1)
    with pytest.raises(RewardError) as refused:
        pool.values(asked("a", text))
    assert message in str(refused.value) and f'response: "{text}"' in str(refused.value)
    assert round(pool.values(asked("a"))["slow"][0]) == 1  # in a new process


def test_a_file_that_cannot_be_imported_is_told_by_its_process_too(tmp_path):
    (tmp_path / "b.py").write_text("import no_such_package_here\ndef f(texts): ...\n")
    pool = FunctionReward.of({"path": f"{tmp_path}/b.py:f", "processes": 1}, "reward")
    with pytest.raises(RewardError, match="b.py cannot be imported: ModuleNotFoundError"):
        pool.values(asked("a"))
    pool.close()


ASKED_TWICE = """
import sys
from components.rewards.functions import FunctionReward
from tests.rewards.test_functions import asked

pool = FunctionReward.of({"path": sys.argv[1], "processes": 1}, "reward")
for _ in range(2):
    try:
        pool.values(asked("a", "b"))
    except ValueError as error:
        print(error)
"""


def test_a_file_that_cannot_be_imported_is_told_for_every_response_and_none_waits_for_it(tmp_path):
    """In a process of its own, which a time limit can end."""
    (tmp_path / "b.py").write_text("import no_such_package_here\ndef f(texts): ...\n")
    command = [sys.executable, "-c", ASKED_TWICE, f"{tmp_path}/b.py:f"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.count("b.py cannot be imported: ModuleNotFoundError") == 2


def test_closing_ends_the_processes(reward):
    pool = reward({"slow": {}}, processes=1)
    pid = round(pool.values(asked("a"))["slow"][0] % 1 * 1e9)
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
