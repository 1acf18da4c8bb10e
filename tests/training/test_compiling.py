"""When a run compiles its layers."""

import pytest

from components.models.layer import DecoderLayer
from components.stages import stage as stages
from components.training import compiling
from components.training.compiling import COMPILE_FROM, compiles
from components.training.contract import RunContext
from tests.kit.pretend_gpu import Pretended, pretended
from tests.kit.stage_runs import MAKERS
from tests.kit.tiny_stages import fit


@pytest.mark.parametrize(
    ("choice", "device", "steps", "compiled"),
    [
        (True, "cpu", 1, True),
        (False, "cuda", 10 * COMPILE_FROM, False),
        ("auto", "cuda", COMPILE_FROM, True),
        ("auto", "cuda", COMPILE_FROM - 1, False),
        ("auto", "cpu", 10 * COMPILE_FROM, False),
        ("auto", "mps", 10 * COMPILE_FROM, False),
    ],
)
def test_auto_compiles_in_long_runs_on_cuda_alone(choice, device, steps, compiled):
    assert compiles(choice, device, steps) is compiled


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_stage_compiles_all_its_layers_once_when_its_steps_are_known(on_gpu, monkeypatch, caplog):
    compiled = []
    monkeypatch.setattr(compiling, "COMPILE_FROM", 1)
    monkeypatch.setattr(DecoderLayer, "compile", lambda self: compiled.append(self))
    stage, batches = MAKERS["sft"](1)
    stage.run = RunContext(compile="auto")
    with caplog.at_level("INFO", logger=stages.log.name):
        if on_gpu:
            with pretended(monkeypatch):
                fit(stage, batches, max_steps=1, strategy=Pretended())
        else:
            fit(stage, batches, max_steps=1)
    assert compiled == (list(stage.model.model.layers) if on_gpu else [])
    assert ("compile=auto: layers are compiled" in caplog.text) is on_gpu
