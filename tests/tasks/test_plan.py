"""All stages of a pipeline are checked before the first runs: settings, parents and data of each."""

import json
import sys
from pathlib import Path

import pytest
from omegaconf import open_dict

from components.artifacts.metadata import ArtifactError
from components.data.records.errors import SourceError
from components.launch import composing
from components.launch.schema import ConfigError
from components.tasks import plan
from tests.kit.composed_configs import compose_config

STAGES = "stages=[tokenizer,pretrain,sft,rm]"


@pytest.fixture(autouse=True)
def copies(monkeypatch) -> None:
    """Stages are checked on copies of what is composed once."""
    monkeypatch.setattr(composing, "compose_config", compose_config)


def looked_through(*overrides: str) -> list[plan.Step]:
    cfg = compose_config(["stage=all", *overrides])
    steps = plan.steps_of(cfg)
    plan.check(steps)
    return steps


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Overrides of experiment=files, with a file for each kind of records."""
    rows = {
        "text": {"text": "a"},
        "chat": {"prompt": "a", "completion": "b"},
        "preference": {"prompt": "a", "chosen": "b", "rejected": "c"},
    }
    for kind, row in rows.items():
        (tmp_path / f"{kind}.jsonl").write_text(json.dumps(row))
    return ["experiment=files", f"paths.logs={tmp_path}/logs", *(f"files.{k}={tmp_path}/{k}.jsonl" for k in rows)]


def test_later_stages_can_read_what_each_stage_makes(files, tmp_path):
    steps = looked_through(*files)
    assert [step.entry for step in steps] == ["tokenizer", "pretrain", "sft", "rm", "ppo", "eval"]
    assert f"data.path='{tmp_path}/chat.jsonl'" in steps[2].arguments


def test_a_variant_has_the_overrides_of_its_stage_then_its_own():
    cfg = compose_config(["stage=all", "stages=[ppo,ppo/low]", "overrides.ppo=['stage.beta=0.3','stage.lam=1']"])
    with open_dict(cfg):
        cfg.overrides["ppo/low"] = ["stage.beta=0.1"]
    ppo, low = (step.arguments for step in plan.steps_of(cfg))
    assert ppo[-2:] == ["stage.beta=0.3", "stage.lam=1"]
    assert low[-3:] == ["stage.beta=0.3", "stage.lam=1", "stage.beta=0.1"]
    assert compose_config(low[low.index("stage=ppo") :]).stage.beta == 0.1


@pytest.mark.parametrize("kind", ["text", "chat", "preference"])
def test_a_file_that_is_not_there_is_named_by_the_key_that_the_user_set(files, kind, tmp_path):
    wrong = [one for one in files if not one.startswith(f"files.{kind}")] + [f"files.{kind}={tmp_path}/none.jsonl"]
    with pytest.raises(
        SourceError, match=rf"none\.jsonl: no such file or folder\. Set files\.{kind} to one that exists"
    ):
        looked_through(*wrong)


def test_a_wrong_path_on_the_command_line_keeps_its_own_key(tmp_path):
    logs = f"paths.logs={tmp_path}"
    with pytest.raises(SourceError, match=r"Set data\.path to one"):
        looked_through(logs, "stages=[tokenizer]", "overrides.tokenizer=['data=text','data.path=no.txt']")
    with pytest.raises(SourceError, match=r"Set comparisons\.path to one"):
        looked_through(logs, "overrides.eval=['comparisons.path=no.jsonl']")


def test_a_mistake_in_the_last_stage_is_reported_before_the_first(tmp_path):
    with pytest.raises(ConfigError, match=r"stage\.beta: expected float, got 'much'"):
        looked_through(f"paths.logs={tmp_path}", "overrides.ppo=['stage.beta=much']")


def test_a_parent_that_no_earlier_stage_makes_is_missing(tmp_path):
    with pytest.raises(ArtifactError, match=f"no pretrain artifact at {tmp_path}/tiny/pretrain/export"):
        looked_through(f"paths.logs={tmp_path}", "stages=[tokenizer,sft,pretrain]")
    with pytest.raises(ArtifactError, match="no sft artifact at /nowhere"):
        looked_through(f"paths.logs={tmp_path}", STAGES, "artifacts.sft=/nowhere")


def test_an_evaluation_by_reward_functions_reads_the_language_models_that_earlier_stages_make(tmp_path):
    correct = "['reward=function','reward.path=components.rewards.ready:exact_match']"
    functions = [f"overrides.ppo={correct}", f"overrides.eval={correct}"]
    stages = "stages=[tokenizer,pretrain,sft,ppo,eval]"
    looked_through(f"paths.logs={tmp_path}", stages, *functions)
    looked_through(f"paths.logs={tmp_path}", "stages=[tokenizer,pretrain,eval]", *functions)
    with pytest.raises(ArtifactError, match="no rm artifact"):
        looked_through(f"paths.logs={tmp_path}", stages, functions[0])
    with pytest.raises(ArtifactError, match="run tiny has no model to evaluate"):
        looked_through(f"paths.logs={tmp_path}", "stages=[tokenizer,eval]", *functions)
    pytest.importorskip("reasoning_gym")
    looked_through("experiment=rlvr", f"paths.logs={tmp_path}", f"model.path={tmp_path}")


def test_data_that_an_earlier_stage_writes_need_not_exist(tmp_path):
    made = f"{tmp_path}/tiny/compare/preferences.jsonl"
    rm = f"overrides.rm=['data=preference','data.path={made}']"
    looked_through(f"paths.logs={tmp_path}", "stages=[tokenizer,pretrain,sft,compare,rm]", rm)
    with pytest.raises(SourceError, match=r"preferences\.jsonl: no such file"):
        looked_through(f"paths.logs={tmp_path}", STAGES, rm)


def test_checking_writes_nothing(tmp_path):
    looked_through(f"paths.logs={tmp_path}", STAGES)
    assert list(Path(tmp_path).iterdir()) == []


def test_a_technique_that_cannot_be_used_is_found_before_any_training(tmp_path, monkeypatch):
    run = ["experiment=techniques", "hydra.mode=RUN", f"paths.logs={tmp_path}"]
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ValueError, match=r"stage\.techniques\.\w+: .* needs the package bm25s, .*\[retrieval\]"):
        looked_through(*run)
    eval_only = "overrides.eval=['reward=function','reward.path=components.rewards.exercise_score:solved',{}]"
    wrong = "'stage.techniques={votes: [{name: self_consistency, sample: 3}]}'"
    with pytest.raises(ValueError, match=r"stage\.techniques\.votes: .*sample"):
        looked_through(*run, eval_only.format(wrong))
    right = "'stage.techniques={best: [{name: best_of_n, samples: 3, score: nowhere}]}'"
    looked_through(*run, eval_only.format(right))
