"""Commands of README in two steps each, as a user runs them; the stages of one of them are forked."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.forking import needs_forking
from tests.kit.readme import TRAIN

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("pretrain", "rm", "ppo")
pytestmark = pytest.mark.slow(minutes=3)


def run(folder: Path, command: str) -> None:
    words = [sys.executable, str(ROOT / "train.py"), *shlex.split(command)[2:]]
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    """The folder in which README's command for two steps of everything has run."""
    folder = tmp_path_factory.mktemp("everything")
    run(folder, next(command for command in TRAIN if command == "python train.py stage=all debug=smoke"))
    return folder


def test_commands_of_readme_run_for_two_steps(everything):
    dialogue = {"messages": [{"role": "user", "content": "dax ?"}, {"role": "assistant", "content": "yes ."}]}
    (everything / "my_dialogues.jsonl").write_text("\n".join([json.dumps(dialogue)] * 40))
    run(everything, next(c for c in TRAIN if "my_dialogues.jsonl" in c) + " debug=smoke run=mine from=tiny-smoke")
    run(everything, next(c for c in TRAIN if " -m " in c) + " debug=smoke")
    assert (everything / "logs/tiny-smoke/report/report.json").exists()
    assert (everything / "logs/tiny-smoke/rm-sweep/stage.optimizer.lr=0.0003/export/model.safetensors").exists()


@needs_forking
def test_a_forked_stage_ends_with_the_bits_of_a_fresh_one(everything):
    """Stages of stage=all, forked, against the same commands one by one: with one model, with a head of its own and an
    examination, and with four models and sampling."""
    for stage in STAGES:
        run(everything, f"python train.py stage={stage} debug=smoke run=fresh from=tiny-smoke")
    for stage in STAGES:
        forked, fresh = (everything / "logs" / name / stage / "export" for name in ("tiny-smoke", "fresh"))
        assert {file.name for file in forked.iterdir()} == {file.name for file in fresh.iterdir()}
        one, other = (json.loads((folder / "card.json").read_text()) for folder in (forked, fresh))
        assert one["content"] == other["content"], stage  # of every file but the card
        timed = ("second", "mfu", "minutes", "memory")
        for name in one["metrics"].keys() | other["metrics"].keys():
            assert any(word in name for word in timed) or one["metrics"][name] == other["metrics"][name], name
