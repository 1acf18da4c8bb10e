"""A reward function's place: found, checked and hashed from its source, which is not run before it has to be."""

import sys

import pytest

from components.rewards.function_file import RewardError, entries, load, place_of

SOURCE = """
import helper_of_rewards
from math import sqrt as root
ran.append(1) if (ran := globals().get("ran")) else None

def correct(prompts, completions, answer):
    return [float(helper_of_rewards.SCORE) for _ in prompts]

def valid_json(prompts, completions):
    return [1.0 for _ in prompts]

class Judge:
    pass

async def later(prompts, completions):
    return []

try:
    import nothing_of_this_name
except ImportError:
    def guarded(prompts, completions):
        return []

limit = 3
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "helper_of_rewards.py").write_text("SCORE = 2\n")
    path = tmp_path / "my_rewards.py"
    path.write_text(SOURCE)
    return path


def test_a_function_of_a_file_is_loaded_with_the_modules_next_to_it(file):
    place = place_of(f"{file}:correct", "reward.path")
    function = load(place, "reward.path")
    assert function(["a", "b"], None, None) == [2.0, 2.0]
    assert load(place_of(f"{file}:valid_json", "reward.path"), "").__globals__ is function.__globals__  # run once


def test_a_function_of_an_installed_module_is_loaded_by_its_dotted_name():
    place = place_of("json.decoder:py_scanstring", "reward.path")
    assert load(place, "reward.path")('a"', 0) == ("a", 2)
    assert place.file.name == "decoder.py"


@pytest.mark.parametrize("name", ["correct", "guarded", "limit", "root"])
def test_whatever_the_file_may_bind_passes_the_check_of_its_source(file, name):
    assert place_of(f"{file}:{name}", "reward.path").name == name


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (None, "reward.path: got None, expected a file and a function in it, such as my_rewards.py:correct"),
        ("my_rewards.py", "got 'my_rewards.py', expected a file and a function in it"),
        ("{folder}/my_rewards.py:", "expected a file and a function in it"),
        ("{folder}/my_rewards.py:not a name", "expected a file and a function in it"),
        ("{folder}/yours.py:correct", "no such file: {folder}/yours.py"),
        ("{folder}:correct", "no such file: {folder}"),
        ("no.such.module:correct", "no module named 'no.such.module', nor a file"),
        ("my_rewards:correct", "A file's name ends in .py"),
        ("{folder}/my_rewards.py:corect", "has no function 'corect'. Did you mean correct?"),
        ("{folder}/my_rewards.py:zzz", "It has: correct, valid_json"),
        ("{folder}/my_rewards.py:Judge", "Judge in {folder}/my_rewards.py is a class, expected a plain function"),
        ("{folder}/my_rewards.py:later", "is an async function, expected a plain function"),
        ("{folder}/broken.py:correct", "broken.py, line 2 is not Python"),
    ],
)
def test_a_place_without_a_function_is_refused_with_what_there_is(file, written, message):
    (file.parent / "broken.py").write_text("x = 1\ndef correct(:\n")
    with pytest.raises(RewardError) as refused:
        place_of(written and written.format(folder=file.parent), "reward.path")
    assert message.format(folder=file.parent) in str(refused.value) and "reward.path: " in str(refused.value)


def test_checking_runs_nothing_of_the_file(tmp_path):
    (tmp_path / "r.py").write_text("raise SystemExit(3)\ndef f(prompts): ...\n")
    assert place_of(f"{tmp_path}/r.py:f", "reward.path").name == "f"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import no_such_package_here\ndef f(): ...\n",
            "r.py cannot be imported: ModuleNotFoundError: No module named",
        ),
        ("f = 3\n", "f in {folder}/r.py is a int, expected a function"),
        ("f = dict\n", "f in {folder}/r.py is a class, expected a function"),
    ],
)
def test_a_file_that_fails_or_binds_something_else_is_refused_when_it_is_loaded(tmp_path, source, message):
    (tmp_path / "r.py").write_text(source)
    with pytest.raises(RewardError) as refused:
        load(place_of(f"{tmp_path}/r.py:f", "reward.path"), "reward.path")
    assert message.format(folder=tmp_path) in str(refused.value)


def test_the_content_is_that_of_the_file_wherever_it_lies(file, tmp_path):
    before = place_of(f"{file}:correct", "reward.path").content()
    (tmp_path / "elsewhere.py").write_text(SOURCE)
    assert place_of(f"{tmp_path}/elsewhere.py:correct", "reward.path").content() == before
    assert place_of(f"{file}:valid_json", "reward.path").content() != before
    file.write_text(SOURCE + "# changed\n")
    assert place_of(f"{file}:correct", "reward.path").content() != before


def test_one_function_or_several_with_weights():
    alone = {"path": "a.py:f", "functions": None, "arguments": {"k": 2}}
    assert [tuple(entry) for entry in entries(alone, "reward")] == [("f", "a.py:f", 1.0, {"k": 2}, "reward.path")]
    several = {"right": "a.py:f", "short": {"path": "b.py:g", "weight": -2, "arguments": {"k": 3}}}
    assert [tuple(entry) for entry in entries({"functions": several}, "judge")] == [
        ("right", "a.py:f", 1.0, {}, "judge.functions.right"),
        ("short", "b.py:g", -2.0, {"k": 3}, "judge.functions.short"),
    ]


@pytest.mark.parametrize(
    ("path", "functions", "message"),
    [
        (None, None, "reward.path and reward.functions: got neither, expected one: reward.path=<file.py>:<function>"),
        (None, {}, "got neither"),
        ("a.py:f", {"f": "a.py:f"}, "got both"),
        (None, {"not a name": "a.py:f"}, "reward.functions.not a name: expected a name of letters, digits and _"),
        (None, {"f": {"path": "a.py:f", "arguments": 3}}, "reward.functions.f: got"),
        (None, {"f": {"weight": 1}}, "reward.functions.f: got {'weight': 1}, expected <file.py>:<function>, or {path"),
        (None, {"f": {"path": "a.py:f", "wieght": 1}}, "reward.functions.f: got"),
        (None, {"f": {"path": "a.py:f", "weight": "1"}}, "reward.functions.f.weight: got '1', expected a number"),
        (None, {"f": {"path": "a.py:f", "weight": float("nan")}}, "reward.functions.f.weight: got nan"),
    ],
)
def test_contradicting_settings_are_refused(path, functions, message):
    with pytest.raises(RewardError) as refused:
        entries({"path": path, "functions": functions}, "reward")
    assert message in str(refused.value)
