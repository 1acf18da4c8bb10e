"""The first line, printed before Hydra has composed anything, matches Hydra's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

import train
from components.launch import composing, headline
from components.launch.mistyped import choices

ROOT = Path(__file__).resolve().parents[2]
USUAL = ["stage=rm", "model=small", "stage.optimizer.lr=1e-4", "lora=default", "paths.logs=/big-disk"]
EVERY = [
    *([f"stage={name}"] for name in choices("stage")),
    *(["stage=rm", f"model={name}"] for name in choices("model") if name != "depth"),  # names its run after a setting
    *(["stage=rm", f"debug={name}"] for name in choices("debug")),
    *([f"experiment={name}", *more] for name in choices("experiment") for more in ([], ["debug=smoke"])),
]


def composed(arguments: list[str]) -> str | None:
    """The line by Hydra; None for a sweep and for what does not compose."""
    try:
        with composing.composed(arguments) as cfg:
            hydra = HydraConfig.get()
            stage = hydra.runtime.choices["stage"]
            return None if hydra.mode else f"stage {stage} of run {cfg.run}, in {os.path.normpath(cfg.paths.stage)}"
    except ValueError:
        return None


def test_the_line_matches_hydra_for_a_usual_command():
    assert headline.predicted(USUAL) == composed(USUAL) == "stage rm of run small, in /big-disk/small/rm"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", EVERY, ids=" ".join)
def test_the_line_matches_hydra_for_every_choice(arguments):
    assert headline.predicted(arguments) == composed(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "stage=rm"],
        ["stage=rm", "model=depth"],
        ["stage=rm,ppo"],
        ["stage=rm", "run=${seed}"],
        ["stage=rm", "run=null"],
        ["stage=rm", "run=a,b"],
        ["stage=rm", "model=none_of_these"],
        ["stage=rm", "~paths.folder"],
        ["stage=rm", "+run=x"],
        ["stage=rm", "paths.stage=elsewhere"],
        ["stage=rm", "hydra.run.dir=elsewhere"],
        ["stage=rm", "hydra/launcher=slurm"],
        ["stage=rm", "--cfg", "job"],
        ["rm"],
        ["model=small"],
        [],
    ],
    ids=" ".join,
)
def test_no_line_is_predicted_that_is_not_certain(arguments):
    assert headline.predicted(arguments) is None


def test_a_line_is_printed_once_and_a_different_one_is_still_printed(capsys, monkeypatch):
    monkeypatch.setattr(headline, "_printed", "")
    headline.show(["stage=rm"])
    headline.show_once("stage rm of run tiny, in logs/tiny/rm")
    headline.show_once("stage rm of run tiny, in elsewhere")
    assert capsys.readouterr().out == "stage rm of run tiny, in logs/tiny/rm\nstage rm of run tiny, in elsewhere\n"


def test_it_needs_neither_hydra_nor_torch():
    code = "import sys, components.launch.headline; print({'hydra', 'omegaconf', 'torch'} & sys.modules.keys())"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"


def test_a_config_that_can_change_the_line_is_left_to_hydra(monkeypatch, tmp_path):
    """It sets the run, its folder or Hydra in a group whose files are not read, or is not YAML at all."""
    texts = {"stage": "task: x", "model": "a: 1", "data": "run: mine", "debug": "hydra: {mode: MULTIRUN}"}
    for group, text in texts.items():
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("a: [")
    monkeypatch.setattr(headline, "CONF", tmp_path)
    usual = ["stage=mine", "model=mine"]
    assert headline.predicted(usual) == "stage mine of run mine, in logs/mine/mine"
    assert all(headline.predicted([*usual, f"{group}=mine"]) is None for group in ("data", "debug", "experiment"))


def test_hydra_composes_no_config_for_a_mode_that_the_command_line_sets(monkeypatch):
    monkeypatch.setattr(train, "composed_mode", lambda hydra, name, overrides: "composed")
    assert train.mode(None, "train", ["hydra.mode=RUN", "stage=rm"]) is RunMode.RUN
    for overrides in (["stage=rm"], ["hydra.mode=MULTIRUN"], ["hydra.mode=RUN", "hydra.mode=MULTIRUN"]):
        assert train.mode(None, "train", overrides) == "composed"
