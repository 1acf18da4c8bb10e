import pytest

from components.system import processes
from components.system.countdown import countdown, duration


class Clock:
    """Two seconds pass between two calls."""

    def __init__(self) -> None:
        self.now = -2.0

    def __call__(self) -> float:
        self.now += 2.0
        return self.now


def test_a_line_every_five_seconds_reports_progress_and_remaining_time(capsys):
    """Batches of 2 take 2 s each: after 6 s there are 6 of 10, and 4 s are left."""
    assert list(countdown([2, 2, 2, 2, 2], "probes", 10, count=int, clock=Clock())) == [2] * 5
    assert capsys.readouterr().out.splitlines() == ["probes 6/10 eta 4s"]


def test_short_work_prints_nothing(capsys):
    assert list(countdown("ab", "probes", 2, clock=Clock())) == ["a", "b"]
    assert capsys.readouterr().out == ""


def test_work_that_ends_early_is_closed(capsys):
    for item in countdown(range(100), "probes", 100, clock=Clock()):
        if item == 5:
            break
    assert capsys.readouterr().out.splitlines() == ["probes 3/100 eta 3m14s"]


@pytest.mark.parametrize(("shown", "rank"), [(False, 0), (True, 1)])
def test_nothing_is_shown_without_progress_or_by_other_processes(capsys, monkeypatch, shown, rank):
    monkeypatch.setattr(processes, "rank", lambda: rank)
    assert len(list(countdown(range(9), "probes", 9, shown=shown, clock=Clock()))) == 9
    assert capsys.readouterr().out == ""


def test_durations_are_short():
    assert [duration(seconds) for seconds in (12.4, 185, 7620)] == ["12s", "3m05s", "2h07m"]
