"""What the tests of several folders share. (This file also puts tests/ on the import path: see puppets.py.)"""

import signal

import puppets
import pytest
import torch
from hypothesis import HealthCheck, settings

from components.tokenizer.tokenizer import Tokenizer

# how fast a machine is decides no test
settings.register_profile("gradus", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gradus")

# a shell's background jobs ignore SIGINT, and so would all that tests start and interrupt
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests need a GPU: without one they are reported as skipped, not failed. Files with slow tests come first."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    """A tokenizer of about 300 pieces that knows a few English words."""
    return puppets.small_tokenizer()
