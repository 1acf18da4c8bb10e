"""What was predicted of a run, beside what it took."""

import itertools
from types import SimpleNamespace

import pytest

from components.callbacks import receipt
from components.callbacks.budget import Budget
from components.callbacks.receipt import Receipt
from tests.kit.tiny_run import Stream, Tiny, trainer


class Counted(Tiny):
    """10 FLOPs per token; a step is estimated to take 3 MB."""

    step_bytes = 3e6

    def flops_per_token(self):
        return 10.0


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Its clock shows one second more at every look; the process takes 1 GB, and 1.5 GB at its most."""
    ticks = itertools.count()
    monkeypatch.setattr(receipt, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    monkeypatch.setattr(receipt, "_taken", lambda device: 1e9)
    monkeypatch.setattr(receipt, "_most", lambda device: 1.5e9)


def run(module, flops, steps=6, **settings):
    made = Receipt(flops)
    trainer([Budget(), made], max_steps=steps, **settings).fit(module, Stream(1000))
    return made


def test_a_receipt_has_time_operations_and_memory(capsys):
    """6 batches of 5 tokens were read. The first step ends at 1 s, the second, enough of six, at 2 s, after which it
    does not look any more: 2 s and 4 further steps of 1 s are expected, and at the end it is 3 s."""
    figures = run(Counted(), 1000.0).figures
    assert figures["flops"] == (1000, 300) and figures["memory"] == (1e9 + 3e6, 1.5e9)
    assert figures["seconds"] == (6, 3)
    printed = capsys.readouterr().out
    assert "plan    about 1.0 GB in memory\n" in printed and "plan    about 6s of training\n" in printed


def test_time_is_predicted_after_some_seconds_of_a_long_run():
    """Steps 1 to 4 end at 1 to 4 s: 3 s for 3 steps, and 996 further ones."""
    assert run(Counted(), None, steps=1000).figures["seconds"].predicted == 4 + 996


def test_time_on_rollouts_is_predicted_of_whole_ones():
    """Of 12 steps on rollouts, 4 on each, it looks after 4 and after 8."""

    class Sampling(Counted):
        steps_per_rollout = 4

    assert run(Sampling(), None, steps=12).figures["seconds"].predicted == 2 + 4 / 4


def test_steps_on_short_batches_stand_for_longer_ones():
    """The batches of the step that is timed have 5 tokens each, others have 20 on average: 2 s, and 4 steps of 4 s."""

    class Uneven(Counted):
        def mean_batch(self):
            return 20.0

    assert run(Uneven(), None).figures["seconds"].predicted == 2 + 4 * 4
    assert run(Uneven(), None, accumulate_grad_batches=2).figures["seconds"].predicted == 2 + 4 * 4


def test_micro_batches_are_not_steps():
    assert run(Counted(), None, accumulate_grad_batches=2).figures["seconds"].predicted == 6


def test_what_is_unknown_is_not_predicted(capsys):
    figures = run(Tiny(), None, steps=1).figures
    assert {name: figure.predicted for name, figure in figures.items()} == dict.fromkeys(("seconds", "flops", "memory"))
    assert figures["flops"].actual is None and "plan" not in capsys.readouterr().out
