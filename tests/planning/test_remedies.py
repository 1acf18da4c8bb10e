"""Settings with which a stage fits into memory that does not."""

from components.planning.device_memory import memory_of
from components.planning.estimate import estimate
from components.planning.hardware import load
from components.planning.plan_report import lines
from components.planning.remedies import remedy
from components.planning.work import Network, Rollouts, Work
from components.tasks.workload import model_named

A100, H100 = load("a100_80"), load("h100")


def pretraining(devices: int, batch: int) -> Work:
    network = Network("model", model_named("llama_7b"))
    return Work("pretrain", (network,), 1e12, 1e12 / 2**22, batch * 2048, batch, 1, devices, "fsdp")


def settings(work: Work, hardware) -> str:
    assert not memory_of(work, hardware.memory).fits(hardware.memory)
    found = remedy(work, hardware)
    assert found is not None and found.estimate.memory.fits(hardware.memory)
    return found.settings


def test_the_cheapest_setting_comes_first():
    assert settings(pretraining(64, 8)._replace(strategy="ddp"), A100) == "trainer=fsdp"
    alone = pretraining(1, 8)._replace(strategy="one")
    assert settings(alone, load("a100_40")).endswith("lora=default")
    small = load("a100_80", {"memory": 2e10})
    assert "gradient_checkpointing=true" in settings(pretraining(64, 8)._replace(recompute=False), small)
    row = alone._replace(batch=1, at_once=2048)
    assert settings(row, load("a100_80", {"memory": 1.2e10})) == "trainer=fsdp devices=32"
    assert remedy(alone, load("a100_80", {"memory": 1e9})) is None


def test_a_plan_says_if_nothing_makes_a_stage_fit_and_if_sampling_is_why():
    tiny = load("a100_80", {"memory": 1e9})
    alone = pretraining(1, 8)._replace(strategy="one")
    said = lines(tiny, [estimate(alone, tiny)])[-1]
    assert said.endswith("Neither lora=default nor trainer=fsdp with more devices of this kind is enough")
    rollouts = Rollouts(100, prompts=4, samples_per_prompt=2, prompt=64, response=64, epochs=1, minibatches=1)
    sampling = alone._replace(entry="grpo", rollouts=rollouts)
    assert lines(tiny, [estimate(sampling, tiny)])[-1].endswith("since each holds all weights while it samples")


def test_a_batch_is_as_large_as_fits():
    work = pretraining(8, 64)
    found = dict(setting.split("=") for setting in settings(work, A100).split())
    batch = int(found["data.batch_size"])
    assert batch * int(found["trainer.accumulate_grad_batches"]) == 64
    assert not memory_of(work._replace(batch=2 * batch, at_once=batch * 4096), A100.memory).fits(A100.memory)


def test_with_adapters_rollouts_are_as_wide_as_fits():
    """Without them not even one response at a time fits, which must not be advised along with them."""
    networks = tuple(
        Network(name, model_named("llama_7b"), trained=name == "policy") for name in ("policy", "reference")
    )
    rollouts = Rollouts(100, prompts=16, samples_per_prompt=8, prompt=1536, response=512, epochs=1, minibatches=16)
    work = Work("grpo", networks, 2e7, 1600, 8 * 2048, 8, 1, 8, "fsdp", mixed=True, rollouts=rollouts)
    found = settings(work, H100)
    width = int(found.split()[0].removeprefix("+stage.rollout_width="))
    assert found.split()[1:] == ["trainer=ddp", "lora=default"] and 16 <= width < 128
    made = remedy(work, H100).estimate
    assert made.work.rollouts.width == width
    wider = made.work._replace(rollouts=rollouts._replace(width=2 * width))
    assert not memory_of(wider, H100.memory).fits(H100.memory)
    one_by_one = made.work._replace(rollouts=rollouts._replace(width=1))
    assert made.sampling < 0.2 * estimate(one_by_one, H100).sampling
