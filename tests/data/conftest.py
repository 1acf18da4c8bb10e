import gzip
import json
from pathlib import Path

import datasets
import pytest

from components.tokenizer.tokenizer import Tokenizer
from components.tokenizer.train import train


@pytest.fixture(scope="session")
def tok() -> Tokenizer:
    """One token for every ASCII character, so that lengths can be counted by eye."""
    return train(["a"], vocab_size=266)


@pytest.fixture
def common(tok, tmp_path) -> dict:
    """The arguments that a task passes to a data module."""
    return {"tokenizer": tok, "context": 64, "cache_dir": str(tmp_path / "cache"), "seed": 3}


@pytest.fixture
def write(tmp_path):
    """write(name, records or text or bytes) -> path of the file."""

    def write(name: str, content) -> str:
        path = Path(tmp_path / name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(record) + "\n" for record in content)
        content = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return str(path)

    return write


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keeps `datasets` from writing into the home folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
