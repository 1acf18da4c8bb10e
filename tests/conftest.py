"""What the tests of several folders share. (This file also puts tests/ on the import path: see puppets.py.)"""

import puppets
import pytest

from components.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    """A tokenizer of about 300 pieces that knows a few English words."""
    return puppets.small_tokenizer()
