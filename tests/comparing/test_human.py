"""A person ranks: what is shown, what can be typed, and what it means."""

import io
import random

import pytest
from rich.console import Console

from components.comparing.human import HumanJudge, Stop, Undo, ranking
from tests.kit.typist import typist

PROMPT = [{"role": "user", "content": "where does [bold]anna[/bold] live?"}]


class Reversed(random.Random):
    """Shuffles into reverse order."""

    def shuffle(self, items):
        items.reverse()


def judged(lines, completions=("one", "two", "three"), prompt=PROMPT, rng=None, **settings):
    """(ranks, or the exception raised; the printed text; the prompts)."""
    read, asked = typist(lines)
    out = io.StringIO()
    console = Console(file=out, width=40, color_system=None, force_terminal=settings.pop("terminal", False))
    judge = HumanJudge(console=console, read=read, interactive=settings.pop("interactive", False))
    try:
        found = judge.rank(prompt, list(completions), rng or Reversed())
    except (Undo, Stop) as stop:
        found = type(stop)
    return found, out.getvalue(), asked


@pytest.mark.parametrize(
    ("line", "ranks"),
    [
        ("b a=c d", [1, 0, 1, 2]),
        ("abcd", [0, 1, 2, 3]),
        ("d c b a", [3, 2, 1, 0]),
        ("a=b=c=d", [0, 0, 0, 0]),
        (" B > a = C , d ", [1, 0, 1, 2]),
        ("c=d a=b", [1, 1, 0, 0]),
    ],
)
def test_letters_from_best_to_worst_become_ranks(line, ranks):
    assert ranking(line, 4) == ranks


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a b", "c is missing"),
        ("", "a b c are missing"),
        ("a b c a", "a appears twice"),
        ("a b c d", "d is not one of a b c"),
        ("1 2 3", "1 is not one of a b c"),
        ("= a b c", "= belongs between two letters"),
        ("a == b c", "= belongs between two letters"),
        ("a b c =", "= belongs between two letters"),
    ],
)
def test_an_invalid_ranking_is_refused_with_the_reason(line, reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        ranking(line, 3)


def test_letters_stand_for_completions_in_the_order_shown():
    # shown in reverse: a is "three", b "two", c "one"
    ranks, out, _ = judged(["a b=c"])
    assert ranks == [1, 1, 0]
    assert out == "user: where does [bold]anna[/bold] live?\n  a  three\n  b  two\n  c  one\n"


def test_every_order_gives_the_ranking_that_was_meant():
    meant = {"one": 2, "two": 0, "three": 1}
    for seed in range(10):
        order = ["one", "two", "three"]
        random.Random(seed).shuffle(order)
        line = " ".join(sorted("abc", key=lambda letter: meant[order["abc".index(letter)]]))
        assert judged([line], rng=random.Random(seed))[0] == [2, 0, 1]


def test_after_an_invalid_line_the_person_is_asked_again_with_the_reason():
    ranks, out, asked = judged(["a b", "x", "c b a"])
    assert ranks == [0, 1, 2] and len(asked) == 3
    assert "c is missing. Best first, such as b a=c;" in out and "x is not one of a b c." in out


def test_a_lone_s_skips_u_undoes_and_q_stops():
    assert [judged([line])[0] for line in ("s", " S ", "u", "q")] == [None, None, Undo, Stop]


@pytest.mark.parametrize("end", [EOFError(), KeyboardInterrupt()])
def test_the_end_of_the_input_and_control_c_stop_in_order(end):
    assert judged([end])[0] is Stop


def test_a_person_is_shown_where_to_type_and_a_pipe_is_not():
    assert judged(["a b c"], interactive=True)[2] == ["ranking> "]
    assert judged(["a b c"])[2] == [""]


def test_all_turns_of_a_prompt_are_shown_and_lines_of_a_completion_are_aligned():
    turns = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "go"},
    ]
    _, out, _ = judged(["a b"], completions=("x\ny", "z"), prompt=turns)
    assert out == "system: be kind\nuser: hi\nassistant: ho\nuser: go\n  a  z\n  b  x\n     y\n"


def test_a_models_escape_sequences_do_not_reach_a_terminal():
    assert "\x1b[2J" not in judged(["a b"], completions=("x\x1b[2J", "z"), terminal=True)[1]


def test_more_completions_than_letters_are_refused():
    with pytest.raises(ValueError, match="27 completions, expected at most 26"):
        judged(["s"], completions=[str(n) for n in range(27)])
