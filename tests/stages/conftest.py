from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from components.data.chat import ChatData
from components.data.preference import PreferenceData
from components.data.prompts import PromptsData
from components.data.text import TextData
from components.data.unpaired import UnpairedData
from components.tokenizer.tokenizer import Tokenizer
from components.tokenizer.train import train
from components.world.world import World

SMALL = {"num_names": 9, "held_out_share": 1 / 6}  # 4 of 27 questions
DATA: dict[str, Callable[..., Any]] = {
    "pretrain": partial(TextData, num_documents=60, batch_size=2),
    "sft": partial(ChatData, demonstrations=40, batch_size=6),
    "rm": partial(
        PreferenceData, comparisons=24, completions=3, batch_size=4, demonstrations="world", num_demonstrations=20
    ),
    "kto": partial(UnpairedData, comparisons=24, completions=2, batch_size=8),
    "ppo": partial(PromptsData, prompts_per_rollout=6, batch_size=3),
    "ppo_ptx": partial(
        PromptsData,
        prompts_per_rollout=6,
        batch_size=3,
        pretraining=partial(TextData, world=SMALL, num_documents=60, batch_size=1),
    ),
}
DATA |= dict.fromkeys(("dpo", "simpo", "orpo"), DATA["rm"])
DATA |= dict.fromkeys(("grpo", "rloo", "rejection", "distill", "ppo_function", "grpo_function"), DATA["ppo"])


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are faster so; and a process with several compute threads cannot be forked."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Knows the words of a world of nine names."""
    return train((record["text"] for record in World(**SMALL).corpus(200)), vocab_size=400)


@pytest.fixture
def data(tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., Any]:
    """data("sft"): a new data module of that stage, on the world of nine names."""

    def make(stage: str, **changes: Any) -> Any:
        common = dict(tokenizer=tokenizer, context=96, cache_dir=str(tmp_path / "cache"), world=SMALL, val_fraction=0.1)
        return DATA[stage](**(common | changes))

    return make
