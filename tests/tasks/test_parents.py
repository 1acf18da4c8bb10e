"""Missing artifacts that a stage reads are made first, if the command line leaves that to us."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.artifacts import store
from components.artifacts.store import ArtifactError
from components.launch import composing, sweep_folders
from components.launch.schema import ConfigError, check
from components.tasks import command_line, parents, plan
from tests.kit.composed_configs import compose_config
from tests.kit.tiny_models import random_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def copies(monkeypatch) -> None:
    """Stages are checked on copies of what is composed once."""
    monkeypatch.setattr(composing, "compose_config", compose_config)


@pytest.fixture
def logs(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "logs"


@pytest.fixture
def make(logs, small_tokenizer):
    """A function that puts an artifact with a model where a stage of a run writes its own."""

    def make(stage: str, run: str = "tiny") -> Path:
        folder = logs / run / stage / "export"
        model = None if stage == "tokenizer" else random_model(small_tokenizer.vocab_size)
        store.write_artifact(folder, card={"stage": stage}, tokenizer=small_tokenizer, model=model)
        return folder

    return make


def missing(*overrides: str) -> dict[str, list[str]]:
    """{stage: its further arguments} of what is made first for `python train.py <overrides>`."""
    cfg = compose_config(overrides)
    parents.resolve_reads(cfg)
    usual = {"--config-name=train", "hydra.mode=RUN"}
    return {
        step.entry: [one for one in step.arguments if one not in usual | {f"stage={step.entry}"}]
        for step in parents.missing(cfg)
    }


def test_a_fresh_clone_makes_everything_a_stage_needs_in_order_with_the_same_overrides(logs):
    steps = missing("stage=rm", "model=small", "seed=3", "trainer.max_steps=60")
    assert list(steps) == ["tokenizer", "pretrain", "sft"]
    assert set(map(tuple, steps.values())) == {("model=small", "seed=3", "trainer.max_steps=60")}


def test_only_what_is_missing_is_made(make):
    make("tokenizer"), make("pretrain")
    assert list(missing("stage=rm")) == ["sft"]
    make("sft")
    assert missing("stage=rm") == {}
    assert list(missing("stage=ppo")) == ["rm"]
    assert missing("stage=pretrain") == {}


def test_overrides_for_the_stage_alone_are_not_passed_on(logs):
    own = ["stage.optimizer.lr=1e-4", "data.comparisons=60", "data.batch_size=4", "examination=null", "force=true"]
    assert missing("stage=rm", *own) == {"tokenizer": [], "pretrain": [], "sft": []}


def test_an_added_key_reaches_the_parents_that_have_its_group(logs):
    steps = missing("stage=sft", "+model.dropout=0.1", "+callbacks.mine=null")
    assert steps == {stage: ["+model.dropout=0.1", "+callbacks.mine=null"] for stage in ("tokenizer", "pretrain")}


def test_the_jobs_of_a_sweep_share_their_parents(logs, monkeypatch):
    monkeypatch.setenv(sweep_folders.SWEPT, "seed,trainer.max_steps,model")
    steps = missing("stage=sft", "seed=2", "trainer.max_steps=5", "model=micro", "determinism=true")
    assert steps == {stage: ["model=micro", "determinism=true"] for stage in ("tokenizer", "pretrain")}


@pytest.mark.parametrize(
    "named",
    ["artifacts.sft=nowhere", "from=other", "parents=never", "artifacts.tokenizer=nowhere"],
)
def test_a_parent_that_the_command_line_names_is_never_made(named, logs):
    with pytest.raises(ArtifactError, match=r"no \w+ artifact at .*Make it with: python train.py stage="):
        missing("stage=rm", named)


def test_a_folder_that_no_stage_writes_is_named_with_its_settings_and_without_a_command(logs):
    said = "no artifact at nowhere, which is no stage's usual place. Name another folder: .*reads.model=<folder>"
    with pytest.raises(ArtifactError, match=said):
        missing("stage=rm", "reads.model=nowhere")


def test_a_teacher_that_is_not_named_is_the_ppo_policy_of_the_run_and_one_that_is_is_never_made(logs):
    assert list(missing("stage=distill")) == ["tokenizer", "pretrain", "sft", "rm", "ppo"]
    with pytest.raises(ArtifactError, match="no artifact at nowhere, .*reads.teacher=<folder>"):
        missing("stage=distill", "artifacts.teacher=nowhere")


def test_the_command_for_a_missing_artifact_makes_only_what_that_artifact_is_made_from(logs):
    with pytest.raises(ArtifactError, match=r"no dpo artifact .*\n.*'stages=\[tokenizer,pretrain,sft,dpo\]'"):
        missing("stage=compare", "reads.model=${artifacts.dpo}", "parents=never")


def test_torchrun_and_srun_make_no_parents(logs, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ArtifactError, match="no sft artifact"):
        missing("stage=rm")


def test_other_data_make_no_parents_unless_they_are_asked_for(logs):
    mine = ["stage=rm", "data=preference", "data.path=pairs.jsonl"]
    with pytest.raises(ArtifactError, match="do not say what its parents learn from; parents=auto makes them"):
        missing(*mine)
    assert missing(*mine, "parents=auto") == {"tokenizer": [], "pretrain": [], "sft": []}


def test_an_experiment_makes_no_parents(logs):
    with pytest.raises(ArtifactError, match="experiment=vicuna_13b does not say what"):
        missing("experiment=vicuna_13b", "debug=smoke", "run=x")


def test_a_parent_from_another_world_is_not_made(make):
    make("tokenizer"), make("sft")
    with pytest.raises(ArtifactError, match="no rejection artifact"):
        missing("stage=optimum", "model=micro", "run=tiny")


def test_parents_are_named_by_the_run_that_made_them(make):
    make("tokenizer"), make("pretrain"), make("sft")
    cfg = compose_config(["stage=rm", "run=mine", "from=tiny"])
    assert missing("stage=rm", "run=mine", "from=tiny") == {}
    assert cfg.reads.model == "logs/tiny/sft/export" and cfg.paths.export == "logs/mine/rm/export"


def test_in_a_pipeline_from_another_run_each_stage_reads_what_the_one_before_made(logs):
    steps = plan.steps_of(compose_config(["stage=all", "run=mine", "from=tiny", "stages=[rm,ppo]"]))
    with composing.composed(steps[1].arguments) as ppo:
        assert dict(ppo.reads) == {
            "tokenizer": "logs/tiny/sft/export",
            "model": "logs/tiny/sft/export",
            "reward": "logs/mine/rm/export",
        }


@pytest.mark.parametrize(("run", "source"), [("mine", "tiny"), ("tiny", "tiny")])
def test_in_a_sweep_of_pipelines_from_a_run_each_job_reads_what_it_made_itself(run, source, logs):
    job = ["stage=all", f"run={run}", f"from={source}", "stages=[rm,ppo]", "seed=1"]
    cfg = compose_config([*job, f"hydra.run.dir='{logs}/{run}/seed=1'"])
    steps = plan.steps_of(cfg)
    with composing.composed(steps[0].arguments) as rm:
        made, start = rm.paths.export, rm.reads.model
    assert (made, start) == (f"logs/{run}/seed=1/rm/export", "logs/tiny/sft/export")
    with composing.composed(steps[1].arguments) as ppo:
        assert (ppo.reads.reward, ppo.reads.model) == (made, start)


def test_a_sweep_of_pipelines_without_from_names_no_artifacts(logs):
    cfg = compose_config(["stage=all", "run=mine", "seed=1", f"hydra.run.dir='{logs}/mine/seed=1'"])
    assert not [one for step in plan.steps_of(cfg) for one in step.arguments if one.startswith("artifacts.")]


def test_the_folder_of_a_stage_resolves_to_its_artifact(make):
    folder = make("pretrain").parent
    cfg = compose_config(["stage=sft", f"artifacts.pretrain={folder}"])
    parents.resolve_reads(cfg)
    assert cfg.reads.model == cfg.stage.model.path == f"{folder}/export"


def test_later_stages_start_from_model_path_if_its_run_has_no_sft_model(make, capsys):
    theirs = make("sft", run="theirs")
    overrides = ["stage=rm", "model=hf", f"model.path={theirs}"]
    cfg = compose_config(overrides)
    parents.resolve_reads(cfg)
    assert cfg.reads.model == cfg.stage.model.path == str(theirs)
    assert capsys.readouterr().out == f"no sft artifact in run hf: starting from {theirs} (model.path) instead\n"
    assert missing(*overrides) == {}
    make("sft", run="hf")
    cfg = compose_config(overrides)
    parents.resolve_reads(cfg)
    assert cfg.reads.model == "logs/hf/sft/export"


def test_a_finished_stage_names_the_command_that_keeps_both(make):
    cfg = compose_config(["stage=rm", "data.comparisons=60", "stages=[a,b]"])
    told = command_line.in_another_run(cfg)
    assert told == "python train.py stage=rm data.comparisons=60 'stages=[a,b]' run=tiny-2 from=tiny"
    make("rm", run="tiny-2")
    assert command_line.in_another_run(cfg).endswith("run=tiny-3 from=tiny")
    assert command_line.in_another_run(compose_config(["stage=tokenizer", "run=x"])).endswith("stage=tokenizer run=x-2")
    elsewhere = compose_config(["stage=tokenizer", "paths.logs=/a b"])
    assert command_line.in_another_run(elsewhere) == "python train.py stage=tokenizer 'paths.logs=/a b' run=tiny-2"


@pytest.mark.parametrize("setting", ["parents=always", "from=null"])
def test_other_values_are_rejected(setting):
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        check(compose_config(["stage=rm", setting]))


@pytest.mark.slow
def test_one_command_makes_a_reward_model_from_scratch(tmp_path):
    overrides = ["stage=rm", "model=micro", "data.comparisons=60", "trainer.max_steps=2", "examination=null"]
    command = [sys.executable, str(ROOT / "train.py"), *overrides]
    refused = subprocess.run([*command, "parents=never"], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "Make it with: python train.py stage=sft model=micro" in refused.stderr
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rm needs tokenizer, pretrain and sft of run micro: about" in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("[")] == [
        "[1/4] tokenizer",
        "[2/4] pretrain",
        "[3/4] sft",
        "[4/4] rm",
    ]
    card = store.read_card(tmp_path / "logs/micro/rm/export")
    assert card["stage"] == "rm" and card["metrics"]["steps"] == 2
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0 and "is up to date" in again.stdout and "needs" not in again.stdout
