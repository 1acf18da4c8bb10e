"""Problems of procedural tasks: what they are is decided by the settings alone, and a mistake is named at once."""

import json
import sys

import pytest
from omegaconf import OmegaConf

from components.data.records.errors import SourceError
from components.data.sources import procedural
from components.data.sources.procedural import Problems, problem, problems_source
from tests.kit import toy_gym


@pytest.fixture(autouse=True)
def gym(monkeypatch):
    toy_gym.install(monkeypatch)
    yield
    for cache in (procedural._dataset, procedural._problem):
        cache.cache_clear()


def values(tasks, size=3, seed=0, system=None):
    return [row.value for row in problems_source(Problems(tasks, size, seed, system)).rows()]


def test_a_problem_is_a_question_an_answer_and_what_the_scorer_needs():
    [first, *_] = values(["sums"], system="Answer with a number.")
    a, b = (int(part) for part in first["prompt"][1]["content"].removesuffix(" = ?").split(" + "))
    assert first["prompt"][0] == {"role": "system", "content": "Answer with a number."}
    assert first["answer"] == first["completion"] == str(a + b) and first["task"] == "sums"
    assert problem(first["problem"])[1]["metadata"]["terms"] == (a, b)


def test_tasks_take_turns_and_have_settings_of_their_own():
    found = values(["sums", {"task": "countdown", "most": 1}], size=8)
    assert [value["task"] for value in found] == ["sums", "countdown"] * 8
    assert max(int(value["answer"]) for value in found[1::2]) <= 2 < max(int(value["answer"]) for value in found[::2])


def test_a_tasks_settings_can_be_lists():
    """As a config has them: nodes of OmegaConf, in a list of another."""
    [first, *_] = values(OmegaConf.create([{"task": "sums", "signs": ["+", "plus"]}]))
    assert " plus " in first["prompt"][0]["content"]
    assert problem(first["problem"])[1]["question"] == first["prompt"][0]["content"]


def test_seeds_give_different_problems_and_the_same_seed_the_same():
    questions = [[value["prompt"][0]["content"] for value in values(["sums"], 50, seed)] for seed in (0, 1, 0)]
    assert questions[0] == questions[2] != questions[1]
    seeds = [json.loads(value["problem"])["seed"] for value in values(["sums"], 1, 0) + values(["sums"], 1, 1)]
    assert seeds[1] - seeds[0] >= 10_000_000  # problem i has the first one's seed plus i


def test_the_fingerprint_covers_all_that_decides_the_problems(monkeypatch):
    made = [
        problems_source(Problems(*arguments)).fingerprint()
        for arguments in (
            (["sums"], 3, 0, None),
            (["sums"], 4, 0, None),
            (["sums"], 3, 1, None),
            (["sums"], 3, 0, "Hi"),
            (["countdown"], 3, 0, None),
            ([{"task": "sums", "most": 1}], 3, 0, None),
        )
    ]
    monkeypatch.setattr("importlib.metadata.version", lambda package: "2.0")
    assert len({*made, problems_source(Problems(["sums"], 3)).fingerprint()}) == len(made) + 1


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "data.tasks: got none"),
        (["sum"], "reasoning_gym has no task 'sum'. Did you mean sums?"),
        (["xyz"], "There are: codeio, countdown, evaluated, n_queens, sums"),
        ([{"most": 3}], "got {'most': 3}, expected a task's name"),
        ([{"task": "sums", "least": 3}], "sums: .*unexpected keyword argument 'least'"),
        ([{"task": "sums", "most": 0}], "sums: most must be positive"),
        ([{"task": "sums", "seed": 3}], "sums: got seed, which data.task_seed and data.task_problems decide"),
        (["codeio"], "codeio is not supported: it runs programs that a model wrote"),
    ],
)
def test_a_task_that_cannot_be_made_is_named_with_the_reason(tasks, message):
    with pytest.raises(SourceError, match=message):
        problems_source(Problems(tasks, 3))


def test_without_the_package_the_message_has_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(SourceError, match=r"needs the package reasoning-gym, .*\[reasoning-gym\]"):
        problems_source(Problems(["sums"], 3))
