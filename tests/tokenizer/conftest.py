import pytest

from components.tokenizer.tokenizer import Tokenizer
from components.tokenizer.train import train

TEXTS = [
    "dax is red . dax lives in cave . dax eats fish .",
    "q : what color is dax ? a : red .",
    "def double(x):\n    if x:\n        return 2 * x\n\treturn 0\n",
    "Où est le café ? Là-bas. 今天天气很好，我们去公园。 😀 👩\u200d🚀",
    "<|user|> <|assistant|> <|end|> <bos> <eos> <pad> <unk> are names of specials.",
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Some hundred merges of English, code, French and Chinese."""
    return train(TEXTS * 20, vocab_size=600, character_coverage=1.0)


@pytest.fixture(scope="session")
def bytewise() -> Tokenizer:
    """No merges, and pieces for "a" and the space only: any other ASCII character c is the id 8 + ord(c)."""
    return train(["a"], vocab_size=266)
