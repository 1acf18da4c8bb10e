"""A signature read from source is the same as that of the imported object, and needs no import."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import get_object

from components.launch import signatures
from components.launch.schema import _describe, required_of

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = {m for file in ROOT.glob("conf/**/*.yaml") for m in re.findall(r"_target_: *([\w.]+)", file.read_text())}
OTHERS = {  # that users' own configs and overrides name
    "components.training.optimizers.muon",
    "components.training.checkpoint_io.AtomicCheckpointIO",
    "components.stages.onpolicy.OnPolicy",
    "components.models.gpt.GPT",
    "lightning.pytorch.callbacks.LearningRateMonitor",
    "lightning.pytorch.loggers.CSVLogger",
    "torch.nn.Linear",
}


def members(annotation: object) -> list[str]:
    """The members of a union as reported; their order is that of the equal union that `typing` has seen first."""
    return sorted(re.split(" or |, |one of ", _describe(annotation)))


def told(levels: list[signatures.Level]) -> list[dict]:
    """What a check can see of levels: names, kinds, whether there is a default, and annotations as reported."""
    return [
        {
            one.name: (
                one.kind,
                one.default is one.empty,
                members(level.hints[one.name]) if one.name in level.hints else None,
            )
            for one in level.parameters
        }
        for level in levels
    ]


@pytest.mark.parametrize("target", sorted(WRITTEN | OTHERS))
def test_the_source_gives_the_same_signature_as_the_imported_object(target, monkeypatch):
    live = list(signatures._live(get_object(target)))
    required = required_of(get_object(target))
    monkeypatch.setattr(signatures, "_is_imported", lambda target: False)
    assert told(signatures.levels_of(target)) == told(live)
    assert required_of(target) == required


def run(code: str, folder: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    return done.stdout + done.stderr


def test_every_stage_is_checked_without_importing_what_it_names():
    code = """
import sys
from components.launch import schema, composing
for stage in ("tokenizer", "pretrain", "rm", "ppo", "eval", "compare", "all"):
    schema.check(composing.compose_config([f"stage={stage}"]))
try:
    wrong = ["lora=default", "lora.rank=a", "+trainer.max_step=3", "stage.reward.dtype=float16"]
    schema.check(composing.compose_config(["stage=ppo", *wrong]))
except schema.ConfigError as error:
    print(error)
print([name for name in ("torch", "lightning", "datasets", "numpy") if name in sys.modules])
"""
    assert run(code).splitlines() == [
        "lora.rank: expected int, got 'a'",
        "trainer.max_step: lightning.Trainer has no argument 'max_step'. Did you mean max_steps?",
        "stage.reward.dtype: expected one of float32, bfloat16, got 'float16'. Did you mean bfloat16?",
        "[]",
    ]


def test_a_users_class_derived_from_ours_is_read_and_one_without_source_is_imported(tmp_path):
    (tmp_path / "mine.py").write_text(
        """
from typing import Any
from components.callbacks.throughput import Throughput as Ours

class Mine(Ours):
    def __init__(self, *, share: "float | None" = 0.5, **rest: Any) -> None: ...
"""
    )
    (tmp_path / "made.py").write_text(
        """
print("imported")
Made = type("Made", (), {"__init__": lambda self, *, size=1: None})
"""
    )
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from components.launch.schema import schema_of
print(schema_of("mine.Mine"))
print(schema_of("made.Made"))
"""
    assert run(code, tmp_path).splitlines() == [
        "Schema(types={'share': float | None, 'warmup_steps': <class 'int'>}, open=False)",
        "imported",
        "Schema(types={'size': typing.Any}, open=False)",
    ]
