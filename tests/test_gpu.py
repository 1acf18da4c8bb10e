"""What a GPU computes is what a processor computes: attention, generation, training, by every way of the config."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.evaluation.studies import exact_optimum
from components.functional.seeding import seeded
from components.generation.generate import Sampling, generate
from components.models.attention.layout import Layout, pack
from tests.kit import tiny_models

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[1]
VOCAB, STOP, PAD = 40, 1, 0
DOCUMENTS = [[[5, 6, 7], [8, 9], [10, 11, 12]], [[13, 14, 15, 16]], [[17, 18], [19]]]


def run(folder: Path, *overrides: str, code: int = 0) -> str:
    command = [sys.executable, str(ROOT / "train.py"), *overrides, f"paths.logs={folder}"]
    paths = os.pathsep.join([str(ROOT / "tests/faults"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, start_new_session=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with a tokenizer and a base model, made on the GPU."""
    folder = tmp_path_factory.mktemp("gpu")
    for stage in ("tokenizer", "pretrain"):
        run(folder, f"stage={stage}", "debug=smoke", "run=base", "trainer.precision=32-true")
    return folder


@pytest.mark.parametrize("head", [4, 32])  # narrower than FlexAttention takes, and not
def test_packed_rows_have_the_values_and_gradients_of_the_processor(head):
    packed = pack(DOCUMENTS, row_length=16, filler=PAD)
    found = []
    for device in ("cpu", "cuda"):
        model = tiny_models.random_model(VOCAB, hidden_size=4 * head, head_dim=head).to(device)
        hidden = model.hidden(packed.input_ids.to(device), Layout(*(field.to(device) for field in packed.layout)))
        real = hidden[packed.layout.real.to(device)]
        real.square().mean().backward()
        found.append([real.detach().cpu(), model.model.layers[0].self_attn.q_proj.weight.grad.cpu()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=5e-3, rtol=5e-3)  # FlexAttention multiplies in tf32


def test_a_graphed_step_never_samples_an_id_without_a_piece():
    model = tiny_models.random_model(VOCAB, seed=3, unused_ids=(3, 38, 39)).to("cuda")
    with torch.no_grad():
        model.lm_head.weight[[3, 38, 39]] = torch.tensor([[20.0], [-20.0], [20.0]], device="cuda").expand(-1, 16)
    wanted = dict(stop_ids=[STOP], pad_id=PAD, generator=seeded("cuda", 0), samples_per_prompt=8)
    samples = generate(model, [[5, 6, 7, 8], [9]], Sampling(12), **wanted)
    assert not {3, 38, 39} & set(samples.ids[samples.mask].tolist())


def test_generation_says_what_the_processor_says_also_when_rows_leave():
    prompts = [[5, 6, 7, 8], [9], [10, 11], [12, 13, 14], [15], [16, 17]]
    said = []
    for device in ("cpu", "cuda"):
        model = tiny_models.random_model(VOCAB, seed=3).to(device)
        stops = list(range(1, 9))  # likely, so that some rows end early
        said.append(
            generate(
                model,
                prompts,
                Sampling(24, temperature=0.0),
                stop_ids=stops,
                pad_id=PAD,
                generator=seeded(device, 0),
                samples_per_prompt=2,
            ).responses()
        )
    assert said[0] == said[1]
    assert len({len(response) for response in said[0]}) > 1


def test_the_same_seed_draws_the_same_and_another_seed_does_not():
    model = tiny_models.random_model(VOCAB).cuda()
    draws = [
        generate(model, [[5, 6]] * 4, Sampling(16), stop_ids=[STOP], pad_id=PAD, generator=seeded("cuda", seed))
        for seed in (1, 1, 2)
    ]
    assert draws[0].responses() == draws[1].responses() != draws[2].responses()


@pytest.mark.parametrize("rl", ["ppo", "grpo", "rloo", "dpo"])
def test_the_whole_way_runs(tmp_path, rl):
    run(tmp_path, "stage=all", "debug=smoke", "trainer=gpu", f"stages=[tokenizer,pretrain,sft,rm,{rl}]")
    assert (tmp_path / f"tiny-smoke/{rl}/export/model.safetensors").is_file()


@pytest.mark.parametrize("stage", ["sft", "rm", "dpo"])
def test_adapters_share_a_trunk(base, stage):
    run(base, f"stage={stage}", "lora=default", "debug=smoke", "run=base", "trainer=gpu")


@pytest.mark.parametrize(
    "changes",
    [
        ["compile=true"],
        ["trainer=fsdp"],
        ["trainer=ddp"],
        ["trainer=cpu"],
        ["trainer=fsdp", "compile=true"],
        ["gradient_checkpointing=true"],
    ],
)
@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_every_way_of_training_takes_the_same_steps(base, stage, changes):
    plain = [
        "stage=" + stage,
        "debug=smoke",
        "trainer=gpu",
        "trainer.precision=32-true",
        "trainer.max_steps=4",
        "artifacts.tokenizer=base/tokenizer/export",
        "artifacts.pretrain=base/pretrain/export",
        "artifacts.sft=base/pretrain/export",
    ]
    if not (base / f"plain/{stage}/export").exists():
        run(base, *plain, "run=plain")
    name = "-".join(changes).replace("=", "_")
    run(base, *plain, *changes, "trainer.precision=32-true", f"run={name}")
    one, other = (load_file(base / f"{run_name}/{stage}/export/model.safetensors") for run_name in ("plain", name))
    for key, weight in one.items():
        torch.testing.assert_close(other[key], weight, atol=2e-3, rtol=2e-2, msg=lambda text, key=key: f"{key}: {text}")


def test_a_killed_run_goes_on_to_the_same_bits(base):
    settings = [
        "stage=sft",
        "debug=smoke",
        "trainer=gpu",
        "determinism=true",
        "resume=auto",
        "force=false",
        "callbacks.checkpoints.every_n_steps=1",
        "artifacts.tokenizer=base/tokenizer/export",
        "artifacts.pretrain=base/pretrain/export",
        "trainer.max_epochs=-1",
        "trainer.max_steps=6",
    ]
    run(base, *settings, "run=whole")
    death = "+hydra.callbacks.death={_target_: deaths.InTraining, event: end, count: 3}"
    run(base, *settings, "run=parts", death, code=-9)
    assert "resuming from" in run(base, *settings, "run=parts")
    one, other = (load_file(base / f"{name}/sft/export/model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(other[key], weight) for key, weight in one.items())


def test_the_exact_optimum_and_its_rewards_are_those_of_a_processor():
    """Neither the texts nor the table of rewards stay behind on the processor."""
    model, scalar = tiny_models.random_model(VOCAB), tiny_models.random_scalar(VOCAB, seed=1)
    task = exact_optimum.Task(0.4, 2, -3.0, (STOP,), VOCAB)
    for measure, one in ((exact_optimum.response_logprobs, model), (exact_optimum.response_rewards, scalar)):
        expected = torch.cat(list(measure(one, [5, 6], task)))
        torch.testing.assert_close(torch.cat(list(measure(one.cuda(), [5, 6], task))), expected, rtol=1e-3, atol=1e-3)
