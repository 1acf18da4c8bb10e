"""trainer.dry_run: what is traced from a config, what is refused, and that a large model's plan agrees with it."""

import json

import pytest

from components.functional.output_layer import CHUNK
from components.launch.schema import ConfigError, check
from components.planning.device_memory import memory_of
from components.planning.estimate import bytes_sent
from components.tasks import dispatch, dry_run
from components.tasks.dry_run import show, traced_step
from components.tasks.forecast import request_of
from components.tasks.forecast import show as show_plan
from tests.kit.composed_configs import compose_config

TINY = ("stage=pretrain", "model.num_hidden_layers=1", "data.batch_size=2", "trainer.precision=32-true")


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_stages_on_records_are_traced_without_their_parents_and_data(stage):
    """On two ranks, each of which has half of the weights, those of a frozen reference too."""
    sizes = ("model.num_hidden_layers=1", "data.batch_size=2", "trainer.precision=32-true")
    work, traced = traced_step(compose_config([f"stage={stage}", "trainer=fsdp", "trainer.dry_run=2", *sizes]))
    assert traced.parts["weights"] == 4 * sum(network.parameters for network in work.networks) / 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage=ppo"], "stage=ppo depend on what its models say.*gradus plan stage=ppo devices=4"),
        (["stage=tokenizer"], "stage=tokenizer trains no model"),
        (["stage=pretrain", "trainer=ddp"], "Add trainer=fsdp"),
        (["stage=pretrain", "trainer=fsdp", "trainer.strategy.replicas=3"], "4 devices do not make 3 groups"),
        (["stage=pretrain", "trainer=fsdp", "trainer.precision=bf16-true"], "expected trainer.precision=32-true|"),
        (["stage=sft", "lora=default", "lora.base=int8", "trainer=fsdp"], "Add lora.base=null"),
        (["stage=dpo", "trainer.dry_run=1"], "trainer=fsdp trainer.dry_run=2"),
    ],
)
def test_what_cannot_be_traced_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        traced_step(compose_config(["trainer.dry_run=4", *overrides]))


@pytest.mark.parametrize("wrong", ["0", "many", "2.5"])
def test_the_number_of_ranks_is_checked_with_the_config(wrong):
    with pytest.raises(ConfigError, match="trainer.dry_run: expected"):
        check(compose_config([*TINY, f"trainer.dry_run={wrong}"]))


def test_the_report_has_both_figures_and_their_difference(capsys, monkeypatch):
    cfg = compose_config([*TINY, "trainer=fsdp", "trainer.dry_run=4"])
    step = traced_step(cfg)
    monkeypatch.setattr(dry_run, "traced_step", lambda cfg: step)
    show(cfg)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("traced", "planned", "peak", "all-gather", "on 4 ranks"))
    show(cfg, as_json=True)
    made = json.loads(capsys.readouterr().out)
    assert made["ranks"] == 4 and made["memory_bytes"] == sum(made["memory_by_part"].values())
    assert made["memory_by_part"]["weights"] == made["parameters"]  # 4 bytes each, a quarter of them
    assert made["planned"]["bytes_sent_per_step"] == pytest.approx(made["bytes_sent_per_step"], rel=0.01)


def test_a_plan_with_it_traces_too_and_takes_no_hardware(monkeypatch):
    shown = []
    monkeypatch.setattr(dry_run, "show", lambda cfg, as_json: shown.append((cfg.trainer.dry_run, as_json)))
    show_plan(request_of([*TINY, "trainer.dry_run=1"]), as_json=True)
    assert shown == [(1, True)]
    with pytest.raises(ValueError, match="leave out hardware="):
        show_plan(request_of([*TINY, "trainer.dry_run=1", "devices=4"]), as_json=True)


def test_a_run_with_it_makes_no_parents_and_drops_its_folder(monkeypatch):
    called = []
    monkeypatch.setattr(dry_run, "show", lambda cfg: called.append("show"))
    monkeypatch.setattr(dispatch.run_folder, "drop_unused", lambda: called.append("drop"))
    monkeypatch.setattr(dispatch, "_make_parents", lambda cfg: pytest.fail("parents were made"))
    dispatch.run(compose_config(["stage=rm", "trainer.dry_run=1"]))
    assert called == ["show", "drop"]


@pytest.mark.slow(minutes=2)
def test_llama_65b_on_2048_ranks_takes_what_the_plan_says():
    work, traced = traced_step(compose_config(["experiment=llama_65b", "trainer.dry_run=2048"]))
    assert (work.devices, work.model.parameters) == (2048, 65_285_660_672)
    assert traced.parts["weights"] == pytest.approx(4 * work.model.parameters / 2048, rel=0.02)  # rows are padded
    planned = memory_of(work, float("inf"), chunk=CHUNK["cpu"])
    assert planned.total == pytest.approx(traced.memory, rel=0.1)
    assert bytes_sent(work) == pytest.approx(traced.sent, rel=0.02)
