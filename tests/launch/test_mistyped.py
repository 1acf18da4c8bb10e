"""What train.py answers to an invalid command line."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from components.launch import composing, mistyped, schema

ROOT = Path(__file__).resolve().parents[2]
KEYS = ["trainer.max_steps", "stage.optimizer.lr", "seed", "force", "data.path"]


def find(unknown, others):
    """The key with the same ending, as `schema.nearest_key` finds it in a config of these keys."""
    return next((key for key in KEYS if key.rpartition(".")[2] == unknown.rpartition(".")[2]), "")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["stage=rm", "--max_steps", "5"], ["stage=rm", "trainer.max_steps=5"]),
        (["stage=rm", "--max-steps=5"], ["stage=rm", "trainer.max_steps=5"]),
        (["--stage", "rm", "--model", "small"], ["stage=rm", "model=small"]),
        (["stage=rm", "--seed", "-1"], ["stage=rm", "seed=-1"]),
        (["stage=rm", "--learning-rate", "1e-4"], ["stage=rm", "stage.optimizer.lr=1e-4"]),
        (["stage=rm", "--force"], ["stage=rm", "force=true"]),
        (["rm"], ["stage=rm"]),
        (["rm", "small"], ["stage=rm", "model=small"]),
        (["-m", "rm", "seed=1,2"], ["-m", "stage=rm", "seed=1,2"]),
        (["pretain"], ["stage=pretrain"]),
        (["stage=rmm"], ["stage=rm"]),
        (["stage=pretrian", "model=smal"], ["stage=pretrain", "model=small"]),
        (["-m", "stage=sft,rmm"], ["-m", "stage=sft,rm"]),
        (["stage=rm", "trainer=cpuu"], ["stage=rm", "trainer=cpu"]),
        (["rm", "data.path=my file [1].jsonl"], ["stage=rm", "data.path=my file [1].jsonl"]),
    ],
)
def test_an_invalid_command_is_answered_with_the_one_that_was_meant(typed, meant):
    told = mistyped.answer(typed, find)
    assert told is not None
    assert shlex.split(told.splitlines()[-1].removeprefix("Did you mean: ")) == ["python", "train.py", *meant]


@pytest.mark.parametrize(
    "typed",
    [
        ["stage=rm", "model=small", "trainer.max_steps=5"],
        ["-m", "stage=rm,sft", "seed=choice(1,2)"],
        ["stage=rm", "--cfg", "job", "--package", "model"],
        ["--help"],
        ["--multirun", "stage=rm", "hydra/launcher=slurm"],
        ["--config-dir", "mine", "stage=theirs"],
        ["--config-dir=mine", "stage=theirs"],
        ["stage=rm", "~callbacks.diagnosis", "+trainer.deterministic=true", "logger=null"],
        ["stage=rm", "run=it's mine"],
    ],
)
def test_a_command_that_hydra_accepts_is_left_alone(typed):
    assert mistyped.answer(typed, find) is None


def test_what_resembles_nothing_is_named_without_a_made_up_command():
    told = mistyped.answer(["stage=rm", "--xyzzy", "3", "plugh"], find)
    assert told is not None
    assert told.splitlines() == [
        "--xyzzy 3: train.py has no such flag; settings are written key=value",
        "plugh: expected key=value",
        "python train.py --help lists the stages and the groups",
    ]


def test_a_choice_that_a_group_does_not_have_names_those_it_has():
    told = mistyped.answer(["stage=rm", "trainer=xyzzy"], find)
    assert told is not None and told.startswith(
        "trainer=xyzzy: trainer has no xyzzy; it has auto, cpu, ddp, fsdp, gpu\n"
    )


def test_an_unknown_key_is_answered_with_the_whole_command():
    told = mistyped.respelled("learning_rate", ["stage=rm", "learning_rate=1e-4", "run=a b"], find)
    assert told.splitlines() == [
        "Did you mean stage.optimizer.lr?",
        "python train.py stage=rm stage.optimizer.lr=1e-4 'run=a b'",
    ]


def test_the_earlier_name_of_a_setting_is_answered_with_its_present_one():
    told = mistyped.respelled("data.draw", ["stage=rm", "data.draw=3"], find)
    assert told.splitlines() == ["Did you mean data.answers_seed?", "python train.py stage=rm data.answers_seed=3"]


def test_every_alias_from_other_programs_stands_for_a_key_that_exists():
    cfg = OmegaConf.to_container(composing.compose_config(["stage=rm"]), resolve=True)
    assert set(mistyped.ALIASES.values()) <= set(schema._dotted(cfg, ""))
    assert not set(mistyped.ALIASES) & cfg.keys()


def test_train_py_alone_lists_every_stage_on_a_line_and_imports_nothing_heavy(tmp_path):
    code = (
        "import sys, train\ntry:\n    train.run_command()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert 'torch' not in sys.modules and 'pydantic' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for file in (ROOT / "conf/stage").glob("*.yaml"):
        (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith(f"stage={file.stem} ")]
        assert len(line) > 40
    assert not list(tmp_path.iterdir())
