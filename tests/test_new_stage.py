"""A new stage is two files, its YAML and its module: no list names it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULE = '''"""Imitation of demonstrations whose loss is twice that of SFT."""

from typing import Any

from components.stages.sft import SFT
from components.training.contract import LossOutput


class Imitation(SFT):
    def compute_loss(self, batch: Any) -> LossOutput:
        output = super().compute_loss(batch)
        return output._replace(terms=tuple(term._replace(mean=2 * term.mean) for term in output.terms))
'''


@pytest.mark.slow(minutes=1)
def test_a_stage_of_two_files_runs_in_a_pipeline_and_later_stages_read_it(tmp_path):
    for name in ("components", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    settings = (ROOT / "conf/stage/sft.yaml").read_text(encoding="utf-8")
    target = "components.stages.sft.SFT"
    assert target in settings
    (tmp_path / "conf/stage/imitation.yaml").write_text(
        settings.replace(target, "components.stages.imitation.Imitation"), encoding="utf-8"
    )
    (tmp_path / "components/stages/imitation.py").write_text(MODULE, encoding="utf-8")

    command = [sys.executable, "train.py", "stage=all", "debug=smoke", "model=micro", "trainer=cpu"]
    command += ["stages=[tokenizer,pretrain,imitation,rm]", "overrides.rm=['reads.model=${later:artifacts.imitation}']"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)

    assert done.returncode == 0, done.stdout + done.stderr
    cards = {
        stage: json.loads((tmp_path / f"logs/micro-smoke/{stage}/export/card.json").read_text())
        for stage in ("imitation", "rm")
    }
    assert cards["imitation"]["stage"] == "imitation"
    assert cards["rm"]["parents"]["model"]["stage"] == "imitation"
