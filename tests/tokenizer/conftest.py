from pathlib import Path

import pytest

from components.tokenizer.tokenizer import Tokenizer
from components.tokenizer.train import train
from tests.kit import foreign_tokenizers

TEXTS = [
    "dax is red . dax lives in cave . dax eats fish .",
    "q : what color is dax ? a : red .",
    "def double(x):\n    if x:\n        return 2 * x\n\treturn 0\n",
    "Où est le café ? Là-bas. 今天天气很好，我们去公园。 😀 👩\u200d🚀",
    "<|user|> <|assistant|> <|end|> <bos> <eos> <pad> <unk> are names of specials.",
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A few hundred merges of English, code, French and Chinese."""
    return train(TEXTS * 20, vocab_size=600, character_coverage=1.0)


@pytest.fixture(scope="session")
def bytewise() -> Tokenizer:
    """No merges, and pieces only for "a" and the space: any other ASCII character c has the id 8 + ord(c)."""
    return train(["a"], vocab_size=266)


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> dict[str, Path]:
    """Folders like published ones, by name; tests must not change them."""
    pytest.importorskip("tokenizers")
    root = tmp_path_factory.mktemp("published")
    llama2 = foreign_tokenizers.llama2(root / "llama2")
    return {
        "qwen2": foreign_tokenizers.qwen2(root / "qwen2"),
        "llama3": foreign_tokenizers.llama3(root / "llama3"),
        "gpt2": foreign_tokenizers.gpt2(root / "gpt2"),
        "gpt2-vicuna": foreign_tokenizers.gpt2(root / "gpt2-vicuna", foreign_tokenizers.VICUNA),
        "llama2": llama2,
        "llama2-legacy": foreign_tokenizers.llama2(root / "llama2-legacy", legacy=True, add_bos_token=True),
        "llama2-unspaced": foreign_tokenizers.llama2(root / "llama2-unspaced", add_prefix_space=False),
        "vicuna": foreign_tokenizers.llama2(root / "vicuna", foreign_tokenizers.VICUNA),
        "zephyr": foreign_tokenizers.converted(root / "zephyr", llama2, foreign_tokenizers.ZEPHYR),
        "mistral": foreign_tokenizers.converted(root / "mistral", llama2, foreign_tokenizers.MISTRAL),
        "mistral-legacy": foreign_tokenizers.converted(
            root / "mistral-legacy", llama2, foreign_tokenizers.MISTRAL, tokenizer_class="LlamaTokenizer", legacy=True
        ),
    }
