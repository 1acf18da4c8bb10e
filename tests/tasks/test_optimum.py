"""experiment=optimum composes stage by stage, and stage=optimum measures what it reads."""

import json
import re

import pytest
import torch

from components.artifacts import store
from components.artifacts.store import ArtifactError
from components.launch import composing, spawning
from components.launch.schema import check
from components.models.config import GPTConfig
from components.models.heads import new_causal_lm
from components.tasks import command_line, dispatch, optimum
from components.tokenizer.train import train
from components.world.table_world import TableWorld
from tests.kit.composed_configs import compose_config

EXPERIMENT = compose_config(["experiment=optimum"])
METHODS = ("ppo", "grpo", "grpo/gspo", "grpo/cispo", "rloo", "dpo/people", "kto", "rejection")


def of_stage(entry):
    stage = entry.partition("/")[0]
    own = spawning.own_overrides(EXPERIMENT, entry)
    return compose_config(["experiment=optimum", f"stage={stage}", f"paths.folder={entry}", *own])


@pytest.mark.parametrize("stage", EXPERIMENT.stages)
def test_the_experiment_composes_every_stage_on_the_table_world(stage):
    cfg = of_stage(stage)
    check(cfg)
    assert cfg.world.kind == "table" and cfg.world.seed == cfg.seed
    assert cfg.paths.export == f"logs/optimum/{stage}/export"


def test_what_is_measured_is_what_the_methods_export():
    measured = set(of_stage("optimum").reads.values())
    assert {of_stage(stage).paths.export for stage in ("sft", *METHODS)} <= measured


def test_all_methods_have_the_same_beta_reference_and_number_of_responses():
    beta = EXPERIMENT.exact.beta
    sampled = {}
    for stage in METHODS:
        cfg = of_stage(stage)
        assert cfg.reads.model == EXPERIMENT.artifacts.sft
        if stage != "rejection":
            assert cfg.stage.beta == beta
        if stage in ("dpo/people", "kto"):
            sampled[stage] = cfg.data.comparisons * cfg.data.completions * cfg.trainer.max_epochs
            continue
        assert cfg.stage.score_scale == 1 and cfg.stage.missing_end_score == cfg.world.other
        assert cfg.stage.reward["_target_"] == "components.rewards.table_reward.table_reward"
        rollouts = cfg.trainer.max_steps // (cfg.stage.epochs * cfg.stage.minibatches)
        sampled[stage] = rollouts * cfg.data.prompts_per_rollout * cfg.stage.samples_per_prompt
    assert sampled == dict.fromkeys(METHODS, 61440)
    assert of_stage("optimum").stage.beta == beta
    assert of_stage("ppo").stage.sampling.max_new_tokens == of_stage("optimum").stage.max_new_tokens


def test_distillation_samples_as_many_responses_from_the_same_reference_and_learns_from_ppo():
    cfg = of_stage("distill")
    assert cfg.reads.model == EXPERIMENT.artifacts.sft and cfg.reads.teacher == of_stage("ppo").paths.export
    rollouts = cfg.trainer.max_steps // (cfg.stage.epochs * cfg.stage.minibatches)
    assert rollouts * cfg.data.prompts_per_rollout * cfg.stage.samples_per_prompt == 61440
    assert cfg.paths.export in of_stage("optimum").reads.values()


def test_an_override_that_refers_to_a_folder_of_a_sweep_is_read_as_written():
    """Resolved, it has the = of seed=0 in its value, which is no override."""
    with composing.composed(["stage=ppo", "run='optimum/seed=0'", "stage.value.path=${reads.model}"]):
        assert [one.input_line for one in command_line.overrides()][-1] == "stage.value.path=${reads.model}"


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """A reference and one method, untrained, with a tokenizer of one token a letter."""
    folder = tmp_path_factory.mktemp("logs")
    tokenizer = train((record["text"] for record in TableWorld().corpus(100)), vocab_size=273)
    shape = GPTConfig(tokenizer.vocab_size, 16, 16, 1, 2, 2, 32, initializer_range=0.2)
    for number, stage in enumerate(("tokenizer", "sft", "ppo")):
        torch.manual_seed(number)
        card = {"stage": stage, "metrics": {"seconds": 42.0}}
        model = new_causal_lm(shape) if number else None
        store.write_artifact(folder / f"optimum/{stage}/export", card=card, tokenizer=tokenizer, model=model)
    return folder


def small(logs, *more):
    missing = [f"~reads.{name}" for name in ("grpo", "rloo", "dpo", "kto", "rejection")]
    places = ["run=optimum", f"paths.logs={logs}", f"paths.stage={logs}/out"]
    return compose_config(["stage=optimum", *places, "stage.max_new_tokens=2", *missing, *more])


def test_the_task_writes_metrics_a_page_and_a_picture(logs, capsys):
    dispatch.run(small(logs))
    found = json.loads((logs / "out/optimum.json").read_text())
    assert set(found["methods"]) == {"ppo", "best_of_n"}
    assert found["methods"]["ppo"]["seconds"] == 42.0
    assert found["responses"] == 2 + 271 * 2 + 271**2
    assert found["prompts"] == 4 and found["beta"] == 0.4
    for metrics in (found["optimum"], found["reference"], found["methods"]["ppo"]):
        assert {"objective", "reward", "kl", "total_variation", "fraction_of_optimum"} <= metrics.keys()
    assert (logs / "out/optimum.png").exists() and (logs / "out/optimum.md").exists()
    assert re.search(r"ppo +.*0\.7", capsys.readouterr().out)  # minutes


def test_a_second_run_shows_what_is_there_unless_something_changed(logs, capsys, monkeypatch):
    dispatch.run(small(logs))
    capsys.readouterr()
    monkeypatch.setattr(optimum.exact, "measure", None)
    dispatch.run(small(logs))
    assert "optimum π*" in capsys.readouterr().out
    with pytest.raises(TypeError):
        dispatch.run(small(logs, "stage.beta=0.3"))


def test_a_missing_method_is_named_with_the_command_that_makes_it(logs):
    with pytest.raises(ArtifactError, match="no rejection artifact .* python train.py stage=rejection"):
        dispatch.run(compose_config(["stage=optimum", "model=micro", "run=optimum", f"paths.logs={logs}"]))
