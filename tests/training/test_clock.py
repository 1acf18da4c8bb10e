"""Seconds of an iteration by part."""

import pytest

from components.training import clock as module
from components.training.clock import Clock


@pytest.fixture
def at(monkeypatch):
    """Sets the time."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


def test_a_mark_adds_the_time_since_the_last_and_reading_resets(at):
    clock = Clock()
    for seconds, name in ((2.0, "draw"), (5.0, "score"), (6.5, "draw")):
        at(seconds)
        clock.mark(name)
    assert clock.read() == {"draw": 3.5, "score": 3.0}
    assert clock.read() == {}


def test_a_pause_is_not_counted_even_with_marks(at):
    clock = Clock()
    at(1.0)
    with clock.paused():
        at(10.0)
        clock.mark("draw")
        at(21.0)
    at(23.0)
    clock.mark("update")
    assert clock.read() == {"update": 3.0}
