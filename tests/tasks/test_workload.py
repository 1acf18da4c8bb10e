"""What a stage's config says about its work, without building a model."""

import pytest

from components.tasks.workload import Machine, model_named, work_of
from tests.kit.composed_configs import compose_config

GPU = Machine(per_node=8, mixed=True, kind="cuda")


def work(*overrides: str, **given):
    return work_of(compose_config(overrides), GPU, **given)


def test_pretraining_reads_rows_on_all_devices():
    made = work("experiment=llama_65b")
    assert (made.devices, made.strategy, made.accumulation, made.at_once) == (32, "fsdp", 64, 2048)
    assert made.tokens == 333_786 * 2**22 and made.steps == 333_786
    assert [network.config for network in made.networks] == [model_named("llama_65b")]
    assert made.mixed and made.lean and made.recompute is True
    assert made.algebra == (
        "1 rows of 2,048 tokens × 32 devices × 64 micro-batches = 4,194,304 tokens a step, 333,786 steps",
    )


def test_given_devices_and_tokens_replace_those_of_the_config():
    made = work("stage=pretrain", "model=llama_7b", devices=16, tokens=1e12)
    assert (made.devices, made.strategy, made.tokens) == (16, "ddp", 1e12)
    assert made.steps == -(-1e12 // (16 * 8 * 2048))


def test_pretraining_ends_at_its_steps_or_when_its_text_is_read():
    assert work("stage=pretrain").tokens == 600 * 8 * 128
    once = work("stage=pretrain", "trainer.max_epochs=1", "data.num_documents=20000")
    assert once.tokens == pytest.approx(20_000 * 29 * 0.95) and once.steps == 539


def test_epochs_count_the_records_of_the_world_and_of_a_published_set():
    made = work("stage=sft", "model=tiny")
    assert (made.tokens, made.steps, made.at_once) == (10_000 * 28, 313, 32 * 28)
    dolly = work("experiment=instructgpt_sft")
    assert dolly.tokens == 16 * 15_011 * 2048 and dolly.algebra[0].startswith("4 records of 2,048 tokens at most × 8")


def test_a_file_of_lines_is_counted_and_what_cannot_be_counted_is_asked_for(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n' * 10)  # 35 bytes: 9 tokens
    made = work("stage=sft", "data=chat", f"data.path={file}", "small_data=null")
    assert made.tokens == 3 * 10 * 9
    few = work("stage=sft", "data=chat", f"data.path={file}")  # small_data makes 300 steps of them
    assert (few.steps, few.tokens) == (300, 300 * 10 * 9)
    with pytest.raises(ValueError, match=r"tokens\.sft=<number>"):
        work("stage=sft", "data=chat", "data.path=elsewhere/data")
    assert work("stage=sft", "data=chat", "data.path=elsewhere/data", tokens=1e6).tokens == 1e6


@pytest.mark.parametrize(
    ("stage", "networks"),
    [
        ("pretrain", "model"),
        ("rm", "model"),
        ("dpo", "policy reference"),
        ("simpo", "policy"),
        ("ppo", "policy value reward reference"),
        ("grpo", "policy reward reference"),
        ("distill", "policy teacher"),
    ],
)
def test_the_networks_of_a_stage_are_those_that_its_settings_build(stage, networks):
    made = {network.name: network for network in work(f"stage={stage}").networks}
    assert set(made) == set(networks.split()) and next(iter(made)) == networks.split()[0]
    assert {name for name, one in made.items() if one.trained} == {*made} & {"model", "policy", "value"}
    assert {name for name, one in made.items() if one.reads} == (
        {*made} - {"policy"} if stage in ("dpo", "distill") else set()
    )
    scores = {name for name, one in made.items() if one.head == "score"}
    assert scores == {*made} & {"value", "reward"} | ({"model"} if stage == "rm" else set())


def test_a_reward_function_is_no_network():
    made = work("stage=ppo", "reward=function", "reward.path=mine.py:f")
    assert {network.name for network in made.networks} == {"policy", "value", "reference"}


def test_adapters_are_trained_on_a_trunk_that_the_reference_shares():
    policy, *others = work("stage=grpo", "lora=default", "lora.rank=4", "lora.base=nf4").networks
    assert set(policy.ranks.values()) == {4} and policy.base == "nf4"
    assert {other.name: other.own_trunk for other in others} == {"reward": True, "reference": False}


def test_prompts_become_samples_minibatches_and_steps():
    made = work("experiment=instructgpt_ppo")
    assert made.steps == 4000 and made.rollouts.number == 500
    assert made.algebra[0].startswith(
        "64 prompts × 8 devices × 1 = 512 samples a rollout → 8 minibatches of 64 × 1 epochs = 8 steps; "
        "500 rollouts = 4,000 steps, 256,000 samples of 1024 + 1024 tokens at most"
    )
    text = 8 * 2048
    assert made.tokens == 8 * (500 * 64 * 2048 + 4000 * text)
    assert made.at_once == 64 * 2048 / 8 + text
    group = work("stage=grpo")  # each of 16 prompts is read once, with its 8 responses
    assert group.rollouts.responses == 128 and group.rollouts.read == 16 * 10 + 128 * 8
    best = work("stage=rejection")  # of 8 responses to each of 64 prompts, one is trained on
    assert best.tokens == 10 * 2 * 64 * (10 + 8) and best.batch == 16
    assert "64 prompts × 8 = 512 samples a rollout → 4 minibatches of 16 × 2 epochs" in best.algebra[0]
