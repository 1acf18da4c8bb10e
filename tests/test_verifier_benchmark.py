"""benchmarks/verifier.py: its problems, its reward and its stopwatch."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def module(monkeypatch):
    """Imports a module of benchmarks/ by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_problems_are_different_sums_with_their_answers_and_more_of_them_begin_alike(module):
    problems = module("sums").problems
    asked = [(record["prompt"][-1]["content"], record["answer"]) for record in problems(300)]
    assert len(set(asked)) == 300
    for question, answer in asked:
        first, second = question.removeprefix("Calculate ").removesuffix(".").split(" + ")
        assert int(first) + int(second) == int(answer)
    assert problems(20) == problems(300)[:20]
    with pytest.raises(ValueError, match="at most 10,000"):
        problems(10_001)


def test_only_the_answer_alone_is_exact(module):
    responses = ["12", " 12\n", "12.", "The answer is 12", "", "13"]
    completions = [[{"role": "assistant", "content": text}] for text in responses]
    assert module("sums").exact(completions, ["12"] * 6, prompts=None) == [1, 1, 0, 0, 0, 0]


def test_the_stopwatch_counts_neither_the_first_steps_nor_those_after_the_last_timed(module, monkeypatch):
    harness, verifier = module("harness"), module("verifier")
    load = harness.Load(batch=64, context=128, steps=4, warmup=2)
    watch = harness.Stopwatch(load)
    for step in range(1, 9):
        monkeypatch.setattr(harness, "now", lambda step=step: 10.0 * step)
        monkeypatch.setattr(harness.time, "process_time", lambda step=step: 2.0 * step)
        watch.step()
    assert (watch.seconds, watch.cpu_seconds) == (40, 8)  # of steps 3 to 6
    figures = verifier.figures(load, watch.seconds, watch.cpu_seconds, peak=1.0)
    assert (figures["rate"], figures[verifier.CPU_RATE]) == (6.4, 32)  # 256 samples
