"""What was predicted of a run, beside what it took."""

import pytest

from components.callbacks import receipt
from components.callbacks.budget import Budget
from components.callbacks.receipt import SHARE, Receipt
from components.callbacks.throughput import Throughput
from tests.kit.tiny_run import Stream, Tiny, trainer


class Counted(Tiny):
    """10 FLOPs per token; a step is estimated to take 3 MB."""

    step_bytes = 3e6

    def flops_per_token(self):
        return 10.0


@pytest.fixture(autouse=True)
def speed(monkeypatch):
    monkeypatch.setattr("components.callbacks.throughput.measured_peak", lambda device, dtype: 1e4)
    monkeypatch.setattr(receipt, "_taken", lambda device: 1e9)
    monkeypatch.setattr(receipt, "_most", lambda device: 1.5e9)


def run(module, flops):
    made = Receipt(flops)
    trainer([Throughput(), Budget(), made], max_steps=6).fit(module, Stream())
    return made


def test_a_receipt_has_time_operations_and_memory(capsys):
    """1,000 FLOPs at SHARE of 10,000 a second; 6 batches of 5 tokens were read."""
    figures = run(Counted(), 1000.0).figures
    assert figures["flops"] == (1000, 300) and figures["memory"] == (1e9 + 3e6, 1.5e9)
    assert figures["seconds"].predicted == 1000 / (SHARE * 1e4) and figures["seconds"].actual > 0
    assert "plan    at least 0s of training, 1.0 GB in memory" in capsys.readouterr().out


def test_what_is_unknown_is_not_predicted(capsys):
    figures = run(Tiny(), None).figures
    assert {name: figure.predicted for name, figure in figures.items()} == dict.fromkeys(("seconds", "flops", "memory"))
    assert figures["flops"].actual is None and "plan" not in capsys.readouterr().out
