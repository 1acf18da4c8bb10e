"""What the tests of several folders share."""

import os
import signal
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from components.tokenizer.tokenizer import Tokenizer
from tests.kit import tiny_models

# how fast a machine is decides no test
settings.register_profile("gradus", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gradus")

# One thread: sums are reproducible, and a process forked after its parent used several can wait for them forever
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start

# a shell's background jobs ignore SIGINT, and so would all that tests start and interrupt
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose slow tests take longest come first, so that no process waits for one of them at the end; GPU tests
    are skipped without a GPU, and those of a real model without one."""
    minutes: dict[Path, float] = defaultdict(float)
    for item in items:
        if slow := item.get_closest_marker("slow"):
            minutes[item.path] = max(minutes[item.path], slow.kwargs.get("minutes", 1))
    items.sort(key=lambda item: -minutes[item.path])
    there = {"gpu": torch.cuda.is_available(), "real": "GRADUS_MODEL" in os.environ}
    reasons = {"gpu": "no CUDA device", "real": "GRADUS_MODEL names no model's folder"}
    for item in items:
        for name, reason in reasons.items():
            if item.get_closest_marker(name) and not there[name]:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    """A tokenizer of about 300 pieces that knows a few English words."""
    return tiny_models.small_tokenizer()
