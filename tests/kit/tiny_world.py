"""Fixtures for tests of several folders: a world, a tokenizer trained on it, and models too small to know anything."""

import pytest
import torch

from components.models.config import GPTConfig
from components.models.heads import CausalLM, new_causal_lm, scalar_from_causal
from components.tokenizer.tokenizer import Tokenizer
from components.tokenizer.train import train
from components.world.world import World


@pytest.fixture(scope="session")
def world() -> World:
    return World(seed=1, num_names=6)


@pytest.fixture(scope="session")
def tokenizer(world) -> Tokenizer:
    return train((record["text"] for record in world.corpus(100)), vocab_size=420)


@pytest.fixture(scope="session")
def config(tokenizer) -> GPTConfig:
    return GPTConfig(tokenizer.vocab_size, 16, 32, 2, 2, 1, max_position_embeddings=128)


@pytest.fixture
def new_model(config):
    """A function of a seed: a random model sharp enough that its words are not all equally likely."""

    def make(seed: int, sharpness: float = 8.0) -> CausalLM:
        torch.manual_seed(seed)
        model = new_causal_lm(config).eval()
        with torch.no_grad():
            model.lm_head.weight.mul_(sharpness / 0.02 / 16**0.5 / 4)
        return model

    return make


@pytest.fixture
def uniform(config) -> CausalLM:
    """A model for which all tokens are always equally likely."""
    model = new_causal_lm(config).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    return model


@pytest.fixture
def reward(new_model):
    torch.manual_seed(9)
    return scalar_from_causal(new_model(9)).eval()


@pytest.fixture
def chat_prompts(world, tokenizer):
    """A function of a split: its questions as prompt records with ids."""

    def make(split: str) -> list[dict]:
        return [
            {**record, "ids": tokenizer.render_prompt([{"role": "user", "content": record["prompt"]}])}
            for record in world.prompts(split)
        ]

    return make
