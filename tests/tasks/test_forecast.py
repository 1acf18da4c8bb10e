"""`gradus plan` from the command line: what it prints, and what it refuses."""

import json
import subprocess
import sys

import pytest

from components.planning.hardware import load
from components.tasks import forecast as planning
from components.tasks.forecast import forecast, request_of, show

LLAMA = ["stage=pretrain", "model=llama_65b", "hardware=a100_80", "devices=2048", "tokens=1.4e12", "hardware.price=5"]


def test_its_own_settings_are_taken_from_those_of_train_py():
    asked = request_of([*LLAMA, "mfu=0.4", "tokens.sft=3e6", "data.batch_size=2"])
    assert asked.overrides == ["stage=pretrain", "model=llama_65b", "data.batch_size=2"]
    assert (asked.hardware, asked.devices, asked.budget) == ("a100_80", 2048, None)
    assert asked.changes == {"price": 5.0, "mfu": 0.4}
    assert asked.tokens == {"": 1.4e12, "sft": 3e6}


@pytest.mark.parametrize("wrong", ["devices=2.5", "devices=0", "tokens=many", "mfu=-1", "hardware.price=cheap"])
def test_what_is_no_number_is_refused(wrong):
    with pytest.raises(ValueError, match=wrong.partition("=")[0]):
        request_of([wrong])


def test_llama_65b_as_json(capsys):
    show(request_of(LLAMA), as_json=True)
    made = json.loads(capsys.readouterr().out)
    assert made["stages"]["pretrain"]["days"] == made["total"]["days"] == pytest.approx(20.6, abs=0.1)
    assert made["total"]["gpu_hours"] == pytest.approx(1_022_362, rel=0.05)
    assert made["total"]["cost"] == pytest.approx(5.1e6, rel=0.05)
    assert {"flops", "memory_bytes"} <= made["total"].keys() and not made["stages"]["pretrain"]["fits"]


def test_the_tables_say_what_does_not_fit_and_what_would(capsys):
    show(request_of(LLAMA), as_json=False)
    printed = capsys.readouterr().out
    assert "65.3B" in printed and "20.6 days" in printed and "5,063," in printed
    assert "do not fit in 80.0 GB. It fits with trainer=fsdp, in 20.6 days and 5,063," in printed


def test_nearly_all_of_instructgpts_compute_is_pretraining():
    """Brown et al. 2020 and Ouyang et al. 2022, appendix C, at 6B; most records are as long as they can be."""
    planned = forecast(request_of(["experiment=instructgpt", "hardware=a100_80"]))
    hours = {one.work.entry: one.gpu_hours for one in planned.estimates}
    assert list(hours) == ["pretrain", "sft", "rm", "ppo"] and planned.untrained == ("tokenizer",)
    assert hours["pretrain"] / sum(hours.values()) > 0.98


def test_this_machine_is_measured_for_each_stage(monkeypatch):
    asked = []
    fast = load("h100", {"mfu": 0.1})
    monkeypatch.setattr(planning.this_machine, "measured", lambda work, kind, changes: asked.append(work) or fast)
    planned = forecast(request_of(["stage=sft", "model=tiny", "trainer.accelerator=cpu"]))
    assert [work.entry for work in asked] == ["sft"] and planned.hardware is fast


def test_a_budget_gets_a_model_tokens_and_a_command_that_plans_it(capsys):
    show(request_of(["budget=5.88e23"]), as_json=False)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("gradus plan stage=pretrain model=llama_7b model.hidden_size=")
    planned = forecast(request_of([*printed[-1].split()[2:], "hardware=h100"]))
    assert planned.estimates[0].operations.total == pytest.approx(5.88e23, rel=0.01)
    with pytest.raises(ValueError, match="leave out"):
        show(request_of(["budget=1e20", "stage=sft"]), as_json=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stage=sft", "hardware=abacus"], "hardware=abacus: expected here, a100_40"),
        (["stage=sft", "hardware=h100", "tokens.ppo=1e6"], "tokens.ppo: expected a stage of this run: sft"),
        (["stage=eval", "hardware=h100"], "no stage of it trains a model"),
        (["stage=sft", "bogus=3", "hardware=h100"], "bogus"),
        (["stage=sft", "data.batch_size=many", "hardware=h100"], "data.batch_size"),
        (["stage=sft", "model=hf", "model.path=owner/name", "hardware=h100"], "owner/name is not on this machine"),
    ],
)
def test_a_mistake_is_one_message(arguments, said):
    with pytest.raises(ValueError, match=said):
        forecast(request_of(arguments))


def test_a_named_machine_is_planned_for_without_torch():
    code = f"import sys\nfrom components.tasks.forecast import *\nshow(request_of({LLAMA}), as_json=True)\n"
    code += "assert not {'torch', 'lightning', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
