"""What README promises exists and runs."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from components.cli import app
from components.launch import composing, schema

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
LINES = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
TRAIN = [line for line in LINES if line.startswith("python train.py")]


def test_readme_gives_exactly_one_command_for_the_main_job_and_one_for_the_tests():
    assert BLOCKS[0].strip() == "make demo"
    assert BLOCKS[1].strip() == "make test"
    targets = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo:.*\n\t.*train.py stage=all$", targets, re.MULTILINE)
    assert re.search(r"^test:.*\n\t\$\(PYTEST\)", targets, re.MULTILINE)
    assert "make check\nmake test-all" in (ROOT / ".ci/run").read_text()


def test_there_are_commands_to_check():
    assert len(TRAIN) >= 5


@pytest.mark.parametrize("command", TRAIN)
def test_a_command_of_readme_composes_and_every_value_fits(command):
    overrides = [part for part in shlex.split(command)[2:] if not part.startswith("-")]
    if "--cfg" in command:
        overrides.remove("job")
    single = [re.sub(r"=([^,\[{]+),.*", r"=\1", part) for part in overrides]  # the first job of a sweep
    schema.check(composing.compose_config(single))


def test_every_gradus_command_of_readme_exists():
    named = set(re.findall(r"gradus (\w+) ", README)) - {"trains"}
    assert named and named <= set(get_command(app).commands)


def test_every_file_and_folder_on_the_map_exists():
    block = README.split("## Map\n\n```\n")[1].split("```")[0]
    components = [line for line in block.splitlines() if line.startswith("  ")]
    for name in re.findall(r"(?:^|\s{2,})([\w/]+(?:\.py|/))", "\n".join(components)):
        assert (ROOT / "components" / name).exists(), name
    for name in re.findall(r"^(\S+)", block, re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_every_folder_of_components_is_on_the_map():
    for folder in (ROOT / "components").iterdir():
        if (folder / "__init__.py").exists():
            assert f"{folder.name}/" in README


@pytest.mark.slow
def test_commands_of_readme_run_for_two_steps(tmp_path):
    dialogue = {"messages": [{"role": "user", "content": "dax ?"}, {"role": "assistant", "content": "yes ."}]}
    (tmp_path / "my_dialogues.jsonl").write_text("\n".join([json.dumps(dialogue)] * 40))
    chosen = [
        "python train.py stage=all debug=smoke",
        next(c for c in TRAIN if "my_dialogues.jsonl" in c) + " debug=smoke",
        next(c for c in TRAIN if " -m " in c) + " debug=smoke",
    ]
    for command in chosen:
        words = [sys.executable, str(ROOT / "train.py"), *shlex.split(command)[2:]]
        environment = {**os.environ, "PYTHONWARNINGS": "default"}
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "logs/tiny-smoke/report/report.json").exists()
    assert (tmp_path / "logs/tiny-smoke/rm-sweep/stage.optimizer.lr=0.0003/export/model.safetensors").exists()
