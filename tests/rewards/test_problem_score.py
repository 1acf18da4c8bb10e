"""The task's own program scores an answer, and no answer is ever run."""

import json

import pytest

from components.data.sources import procedural
from components.data.sources.procedural import Problems, problem, problems_source
from components.rewards.problem_score import ARITHMETIC, FORMULAS, HARMLESS, LITERALS, _is_arithmetic, solved
from tests.kit import toy_gym


@pytest.fixture
def gym(monkeypatch):
    toy_gym.install(monkeypatch)
    yield
    for cache in (procedural._dataset, procedural._problem):
        cache.cache_clear()


def first(task: str) -> tuple[str, str]:
    """(problem, answer) of the first one."""
    row = next(problems_source(Problems([task], 1)).rows())
    return row.value["problem"], row.value["answer"]


def test_the_whole_completion_has_to_solve_the_problem_unless_settings_say_otherwise(gym):
    asked, answer = first("sums")
    completions = [answer, f" {answer}\n", f"It is {answer}.", f"<answer>{answer}</answer>", "none", "x"]
    columns = {"problem": [asked] * 5 + [None]}
    assert solved([""] * 6, completions, **columns) == [1, 1, 0, 0, 0, None]
    assert solved([""] * 6, completions, **columns, anywhere=True) == [1, 1, 1, 1, 0, None]
    assert solved([""] * 6, completions, **columns, partial=True) == [1, 1, 0.5, 0.5, 0, None]
    pattern = "<answer>(.*)</answer>"
    assert solved([""] * 6, completions, **columns, extract=pattern) == [0, 0, 0, 1, 0, None]


def test_what_the_program_cannot_read_counts_nothing(gym):
    asked, _ = first("countdown")
    assert solved([""], ["1 / 0"], [asked]) == [0]


ATTACKS = ["[].append(RAN.append(1))", "RAN.append(1)", "__import__('os').abort()", "(lambda: RAN.append(1))()"]


@pytest.mark.parametrize("task", ["countdown", "n_queens"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_answer_is_never_run_by_a_program_that_evaluates_it(gym, monkeypatch, task, attack):
    asked, answer = first(task)
    ran: list[int] = []
    monkeypatch.setattr(toy_gym, "RAN", ran, raising=False)
    assert solved([""], [attack], [asked]) == [0]
    assert not ran
    inert = f"{answer} + 0" if task == "countdown" else f" {answer} "
    assert solved([""], [inert], [asked]) == [1]


def test_a_task_whose_program_evaluates_answers_and_is_not_known_is_refused(gym):
    asked, answer = first("evaluated")
    with pytest.raises(ValueError, match="task evaluated evaluates the answer as a program, which is not allowed"):
        solved([""], ["1 + 1"], [asked])
    assert solved([""], [answer], [asked]) == [1]  # compared as text


@pytest.mark.parametrize(
    ("answer", "numbers", "formula"),
    [
        ("(3 + 4) * -2 / 5", True, True),
        ("2**3", True, True),
        ("x**3/3 + 2*x + C", False, True),
        ("x**(-2) - x**(3/2)", False, True),
        ("exp(-x)*sin(2*x)", False, True),
        ("9**9**9", False, False),
        ("(9**20)**20", False, False),
        ("9**99", False, False),
        ("x.__class__", False, False),
        ("open('f')", False, False),
        ("exec(x)", False, False),
        ("[1]*9", False, False),
        ("'a'*9", False, False),
        ("True", False, False),
        ("24!", False, False),
        ("(" * 500 + ")" * 500, False, False),
        ("1+" * 600 + "1", False, False),
        ("", False, False),
    ],
)
def test_arithmetic_is_numbers_and_small_powers_and_a_formula_has_letters_and_functions(answer, numbers, formula):
    assert (_is_arithmetic(answer, names=False), _is_arithmetic(answer, names=True)) == (numbers, formula)


@pytest.fixture
def library():
    return pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")


# their known answer is None, or one that their program does not accept
WITHOUT = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}


@pytest.mark.slow(minutes=2)
@pytest.mark.filterwarnings("ignore")  # of the library
def test_every_task_of_the_library_gives_its_own_answer_the_full_score_and_runs_no_other(library):
    """Of two problems each."""
    from reasoning_gym.factory import DATASETS

    wrong = set()
    for name in sorted(DATASETS.keys() - procedural.REFUSED.keys()):
        rows = [row.value for row in problems_source(Problems([name], 2)).rows()]
        asked = [row["problem"] for row in rows]
        if solved([""] * 2, [row.get("answer") or "" for row in rows], asked) != [1, 1]:
            wrong.add(name)
        solved([""] * 2, ["__import__('os').abort()"] * 2, asked)
    assert len(DATASETS) > 100
    assert wrong == WITHOUT


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the library
@pytest.mark.parametrize("task", [*ARITHMETIC, *FORMULAS])
def test_correct_answers_in_other_words_pass_the_guard(library, task):
    for row in problems_source(Problems([task], 5)).rows():
        if "Integral" in row.value["answer"]:  # what sympy could not integrate
            continue
        other = f"({row.value['answer']}) + 0" if task not in ARITHMETIC else f"({row.value['answer']})"
        assert _is_arithmetic(other, names=task in FORMULAS), other
        assert solved([""], [other], [row.value["problem"]]) == [1], other


def test_the_tasks_whose_programs_evaluate_answers_are_the_listed_ones(library):
    from reasoning_gym.factory import DATASETS

    from components.rewards.problem_score import _evaluates

    found = {name for name, (kind, _) in DATASETS.items() if _evaluates(kind)}
    assert found - procedural.REFUSED.keys() == {*LITERALS, *ARITHMETIC, *FORMULAS, *HARMLESS}


def test_a_problem_is_made_again_as_it_was(library):
    row = next(problems_source(Problems(["chain_sum"], 1)).rows())
    dataset, entry = problem(row.value["problem"])
    assert entry["question"] == row.value["prompt"][0]["content"] and json.loads(row.value["problem"])["index"] == 0
    assert dataset.score_answer(row.value["answer"], entry) == 1
