"""What is damaged in these tests."""

from pathlib import Path

import pytest

from components.artifacts.store import write_artifact
from tests.kit.tiny_models import random_model, small_tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The artifact of a small language model; each test changes a copy."""
    tokenizer = small_tokenizer()
    folder = tmp_path_factory.mktemp("made") / "export"
    write_artifact(folder, card={"stage": "sft"}, tokenizer=tokenizer, model=random_model(tokenizer.vocab_size))
    return folder
