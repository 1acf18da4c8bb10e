"""A published chat model, from its folder to trained exports: GRADUS_MODEL=<folder> pytest -m real

The folder is in Hugging Face's format, such as SmolLM2-135M-Instruct's. Without it these tests are skipped.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner

from components import cli
from components.artifacts import store
from components.tokenizer.tokenizer import Tokenizer
from tests.faults.killing import in_training
from tests.faults.nursery import ROOT, Nursery

pytestmark = pytest.mark.real
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
REWARD = [
    "lora=default",
    "context=256",
    "reward=function",
    f"reward.path={ROOT}/examples/rewards.py:valid_json",
    "data=prompts",
    f"data.path={ROOT}/examples/prompts.jsonl",
]
SHORT = [  # four rollouts of one update
    "data.prompts_per_rollout=2",
    "++stage.samples_per_prompt=2",
    "stage.epochs=1",
    "stage.minibatches=1",
    "stage.sampling.max_new_tokens=12",
    "trainer.max_steps=4",
    "callbacks.checkpoints.every_n_steps=1",
    "callbacks.samples=null",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(os.environ["GRADUS_MODEL"]).resolve()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


def test_it_is_the_same_chat_model_as_in_transformers(folder):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rendered = transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(
        QUESTION, add_generation_prompt=True, return_dict=False
    )
    ids = Tokenizer.load(folder).render_prompt(QUESTION)
    assert ids == rendered
    batch = torch.tensor([ids])
    with torch.no_grad():
        expected = theirs(batch).logits
        torch.testing.assert_close(store.load_causal_lm(folder)(batch), expected, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_a_killed_run_with_a_python_reward_ends_where_an_unbroken_one_does(folder, nursery, stage, tmp_path):
    def train(run: str, *overrides: str) -> tuple[int, str]:
        command = [f"stage={stage}", "model=hf", f"model.path={folder}", *REWARD, *SHORT, f"run={run}", *overrides]
        return nursery.run(command, tmp_path)

    def weights(run: str) -> dict[str, bytes]:
        export = tmp_path / f"logs/{run}/{stage}/export"
        return {file.name: file.read_bytes() for file in export.glob("*.safetensors")}

    status, output = train("whole")
    assert status == 0, output
    status, output = train("killed", in_training("step", 3))
    assert status == -signal.SIGKILL, output
    status, output = train("killed")
    assert status == 0 and "resuming from" in output, output
    assert weights("killed") == weights("whole") != {}

    export = tmp_path / f"logs/killed/{stage}/export"
    chat = ["chat", str(export), "--temperature", "0", "--max-new-tokens", "12"]
    answered = CliRunner().invoke(cli.app, chat, input=QUESTION[0]["content"])
    assert answered.exit_code == 0 and answered.stdout.strip()
