"""What a command costs before its task starts: how often it composes its config, what it imports, no collection."""

import ast
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from components.tasks import dispatch
from tests.kit.composed_configs import compose_config

ROOT = Path(__file__).resolve().parents[1]
# each takes as long to import as everything that is needed, or can wait until something is read
HEAVY = {"torch", "lightning", "datasets", "transformers", "sentencepiece", "tokenizers", "numpy", "jinja2", "rich"}
COMMAND = """
import os, sys, train
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from components.tasks import pipeline

composed = os.open("composed", os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_WRONLY)
load = ConfigLoaderImpl.load_configuration

def counted(self, config_name, overrides, *args, **kwargs):
    os.write(composed, b"1")  # from this process or one that it has forked
    return load(self, config_name, overrides, *args, **kwargs)

def no_step(steps, entries):
    raise SystemExit(7)

ConfigLoaderImpl.load_configuration = counted
if "only plan" in sys.argv:
    sys.argv.remove("only plan")
    pipeline.run_all = no_step
code = 0
try:
    train.start()
except SystemExit as stop:
    code = stop.code
print([code, os.path.getsize("composed"), sorted(sys.modules)])
"""


class Start(NamedTuple):
    """Exit status, how often a config was composed, what was imported, and what was printed."""

    code: int
    composed: int
    imported: set[str]
    printed: str


def start(folder: Path, *arguments: str) -> Start:
    """What train.py does in a folder with these arguments."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", COMMAND, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    *printed, last = done.stdout.splitlines() or [""]
    code, composed, modules = ast.literal_eval(last)
    return Start(code, composed, set(modules), "\n".join(printed) + done.stderr)


def test_a_refused_stage_composes_its_config_once_and_imports_nothing_heavy(tmp_path):
    refused = start(tmp_path, "stage=rm", "model=small", "parents=never", f"paths.logs={tmp_path}/logs")
    assert refused.code == 1 and "no sft artifact" in refused.printed
    assert refused.composed == 1
    assert not HEAVY & refused.imported


def test_a_plan_composes_one_config_for_each_of_its_stages(tmp_path):
    planned = start(tmp_path, "stage=rm", "model=small", "only plan")
    assert planned.code == 7 and "rm needs tokenizer, pretrain and sft of run small" in planned.printed
    assert planned.composed == 4
    assert not (HEAVY - {"numpy"}) & planned.imported  # which tells how fast this machine is


@pytest.mark.slow
def test_stages_that_are_up_to_date_are_composed_once_and_import_nothing_heavy(tmp_path):
    command = ["stage=all", "stages=[tokenizer]", "data.num_documents=200"]
    assert start(tmp_path, *command).code == 0
    again = start(tmp_path, *command)
    assert again.code == 0 and "is up to date" in again.printed
    assert again.composed == 2
    assert not (HEAVY - {"rich"}) & again.imported  # which prints whether each step worked


def test_configs_composed_ahead_in_two_processes_are_those_that_one_composes(tmp_path):
    program = """
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from components.launch import composing

COMMANDS = [("stage=sft", "model=small"), ("stage=rm", "no_such_key=1"), ("stage=rm", "run=x"), ("stage=eval",)]

def texts():
    results = []
    for command in COMMANDS:
        try:
            with composing.composed(command) as cfg:
                results.append(OmegaConf.to_yaml(cfg) + repr(composing.INTERPOLATIONS))
        except ValueError as error:
            results.append(str(error))
    return results

before = HydraConfig.instance().cfg
composing.compose_ahead(COMMANDS)
assert len(composing._composed) == 3 and HydraConfig.instance().cfg is before
ahead = texts()
composing._composed.clear()
composing._cpus = lambda: {0}
composing.compose_ahead(COMMANDS)
assert not composing._composed
assert ahead == texts(), "differ"
assert "no_such_key" in ahead[1], ahead[1]
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_garbage_is_collected_once_the_task_runs(monkeypatch, tmp_path):
    seen: list[bool] = []
    monkeypatch.setattr(dispatch, "get_method", lambda name: lambda cfg: seen.append(gc.isenabled()))
    cfg = compose_config(["stage=tokenizer", f"paths.logs={tmp_path}"])
    gc.disable()
    try:
        dispatch.run(cfg)
    finally:
        gc.enable()
    assert seen == [True]


@pytest.mark.slow
def test_training_imports_neither_datasets_nor_pandas():
    """Which take 51 MB and most of a second, for data from the Hub alone."""
    script = """
import sys
import components.tasks.fit
from components.data import chat, preference, prompts, text, unpaired
print(sorted({"datasets", "pandas", "pyarrow.dataset", "tensorboard"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
