"""What a reward function gets, and what becomes of whatever it returns."""

import numpy as np
import pytest
import torch

from components.rewards.function_call import Answered, RewardFunction
from components.rewards.function_file import RewardError, place_of

QUESTIONS = [[{"role": "user", "content": text}] for text in ("2 + 2?", "3 + 3?", "4 + 4?")]
ANSWERED = Answered(QUESTIONS, ["4", "7", "8"], [[5, 1], [6, 1], [7, 1]], [True, True, False], {"answer": [4, 6, None]})


@pytest.fixture
def function(tmp_path):
    """A reward function f with this source."""

    def made(source: str) -> RewardFunction:
        (tmp_path / "r.py").write_text(source)
        return RewardFunction("f", place_of(f"{tmp_path}/r.py:f", "reward.path"), "reward.path")

    return made


def test_a_function_with_the_signature_of_trl_reads_messages_and_columns(function):
    f = function(
        "def f(prompts, completions, completion_ids, answer, **kwargs):\n"
        "    assert prompts[0] == [{'role': 'user', 'content': '2 + 2?'}]\n"
        "    assert completion_ids == [[5, 1], [6, 1], [7, 1]] and set(kwargs) == {'texts', 'finished'}\n"
        "    texts = [completion[0]['content'] for completion in completions]\n"
        "    return [None if a is None else float(t == str(a)) for t, a in zip(texts, answer)]\n"
    )
    assert f(ANSWERED) == [1.0, 0.0, None]


def test_a_function_gets_only_what_it_has_a_name_for(function):
    assert function("def f(texts, finished):\n    return [len(t) + 10 * e for t, e in zip(texts, finished)]")(
        ANSWERED
    ) == [11.0, 11.0, 1.0]
    assert function("def f(completions, weights=2):\n    return [weights for _ in completions]")(ANSWERED) == [2.0] * 3


@pytest.mark.parametrize(
    "returned", [[1, 0.5, True], (1, 0.5, True), np.array([1, 0.5, 1]), torch.tensor([1, 0.5, 1]), list(np.ones(3))]
)
def test_numbers_of_every_kind_are_taken(function, returned):
    f = function("def f(texts): ...")
    f._function = lambda texts: returned
    assert f(ANSWERED) == [float(value) for value in returned]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1.0, float('nan'), 1.0]", "returned nan, expected a finite number, or None where it does not apply"),
        ("return [1.0, float('inf'), 1.0]", "returned inf, expected a finite number"),
        ("return [1.0, '1.0', 1.0]", 'returned "1.0", expected a finite number'),
        ("return [1.0, [1.0], 1.0]", "returned [1.0], expected a finite number"),
        ("return [1.0 / (t != '7') for t in texts]", "raised ZeroDivisionError: float division by zero"),
        ("return [{'4': 1, '8': 2}[t] for t in texts]", "raised KeyError: '7'"),
    ],
)
def test_a_fault_is_one_message_with_the_record_it_happened_on(function, body, message):
    with pytest.raises(RewardError) as refused:
        function(f"def f(texts):\n    {body}\n")(ANSWERED)
    told = str(refused.value)
    assert told.startswith("reward f (") and message in told.replace("division by zero)", "division by zero)")
    assert '\n  prompt: "3 + 3?"\n  response: "7"\n  answer: 6' in told and "4 + 4" not in told


def test_an_exception_names_the_line_of_the_file_and_what_to_do(function):
    with pytest.raises(RewardError, match=r"r\.py, line 2\)(?s:.*)Fix the function, or return None where"):
        function("def f(texts):\n    return [int(t) / 0 for t in texts]\n")(ANSWERED)


def test_an_exception_of_the_whole_batch_alone_is_told_as_such(function):
    with pytest.raises(RewardError, match="on 3 responses at once, but on none of them alone"):
        function("def f(texts):\n    assert len(texts) == 1\n    return [0.0]")(ANSWERED)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("None", "returned None, expected a list of 3 numbers (or None)"),
        ("1.0", "returned a float, expected a list of 3 numbers (or None). It is called once with lists"),
        ("'abc'", "returned a str, expected a list of 3 numbers"),
        ("{1: 2}", "returned a dict, expected a list of 3 numbers"),
        ("[1.0]", "returned 1 numbers for 3 responses, expected one for each, in their order"),
        ("(t for t in texts)", "returned a generator, expected a list of 3 numbers"),
    ],
)
def test_anything_but_a_number_for_each_response_is_refused(function, returned, message):
    with pytest.raises(RewardError) as refused:
        function(f"def f(texts):\n    return {returned}\n")(ANSWERED)
    assert message in str(refused.value)


def test_an_argument_that_no_column_has_is_named_with_the_columns_there_are(function):
    with pytest.raises(RewardError) as refused:
        function("def f(completions, reference, tests): ...")(ANSWERED)
    assert "needs reference, tests, which the records do not have. Their columns: answer. Add it" in str(refused.value)
    with pytest.raises(RewardError, match="takes arguments by position only"):
        function("def f(texts, /): ...")(ANSWERED)


SOURCE = "def f(completions, *, column='answer', **columns):\n    return [column == 'reference'] * len(completions)\n"


def test_a_setting_has_to_be_a_parameter_of_its_own_since_only_columns_are_collected(function, tmp_path):
    """A mistyped one among **columns would leave the default, and nobody would see it."""
    function(SOURCE)
    place = place_of(f"{tmp_path}/r.py:f", "reward.path")
    assert RewardFunction("f", place, "reward.path", {"column": "reference"})(ANSWERED) == [1.0] * 3
    for name, hint in (
        ("colum", r"Did you mean column\? \*\*columns collects columns of the data, and no settings"),
        ("threshold", r"It has column\. \*\*columns collects columns of the data"),
    ):
        with pytest.raises(RewardError, match=rf"^reward f \(.*\): has no argument {name!r}\. {hint}"):
            RewardFunction("f", place, "reward.path", {name: 1})(ANSWERED)
    function("def f(**columns):\n    return [1.0] * 3\n")
    with pytest.raises(RewardError, match=r"has no argument 'k'\. It has none to set\."):
        RewardFunction("f", place, "reward.path", {"k": 1})(ANSWERED)


def test_the_functions_of_the_project_refuse_a_mistyped_setting():
    for name in ("exact_match", "numeric_match"):
        place = place_of(f"components.rewards.ready:{name}", "reward.path")
        with pytest.raises(RewardError, match=r"has no argument 'extrat'. Did you mean extract\?"):
            RewardFunction(name, place, "reward.path", {"extrat": "x"})(ANSWERED)


def test_a_column_named_like_another_argument_is_refused(function):
    clash = ANSWERED._replace(columns={"texts": ["a", "b", "c"]})
    with pytest.raises(RewardError, match="a column 'texts', but .* something else. Rename the column"):
        function("def f(texts): ...")(clash)


def test_nothing_of_a_response_is_run(function, tmp_path):
    """Texts that would do something if any of them were evaluated, formatted or imported."""
    evil = [f"__import__('os').mkdir('{tmp_path}/evil')", "{0.__class__}", "%s%s", "\x00\u2028'\""]
    answered = Answered(QUESTIONS[:1] * 4, evil, [[1]] * 4, [True] * 4, {"answer": evil})
    f = function(
        "def f(completions, answer):\n    return [float(c[0]['content'] == a) for c, a in zip(completions, answer)]"
    )
    assert f(answered) == [1.0] * 4
    with pytest.raises(RewardError):
        function("def f(texts):\n    raise ValueError(texts)")(answered)
    assert not (tmp_path / "evil").exists()
