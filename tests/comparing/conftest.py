"""The world and the models of the evaluation's tests."""

from tests.kit.tiny_world import (  # noqa: F401
    chat_prompts,
    config,
    new_model,
    reward,
    tokenizer,
    uniform,
    world,
)
