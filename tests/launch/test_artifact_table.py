"""The table of artifacts is read from conf/stage: who makes one, and what it is made from."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.launch import artifact_table
from components.launch.mistyped import CONF


@pytest.fixture
def stages(tmp_path, monkeypatch) -> Iterator[Path]:
    """conf/stage in a copy of conf/."""
    for group in ("stage", "reward"):
        shutil.copytree(CONF / group, tmp_path / group)
    monkeypatch.setattr(artifact_table, "CONF", tmp_path)
    artifact_table.read_by.cache_clear()
    yield tmp_path / "stage"
    artifact_table.read_by.cache_clear()


def test_stages_that_train_make_artifacts_and_no_others():
    trained = {"pretrain", "sft", "rm", "ppo", "dpo", "kto", "simpo", "orpo", "grpo", "rloo", "rejection", "distill"}
    assert artifact_table.read_by().keys() == {"tokenizer"} | trained


def test_a_stage_reads_what_its_yaml_names_and_what_the_reward_that_it_chooses_names():
    table = artifact_table.read_by()
    assert table["tokenizer"] == [] and table["pretrain"] == ["tokenizer"]
    assert table["rm"] == table["dpo"] == ["sft"]
    assert table["ppo"] == table["grpo"] == ["sft", "rm"]
    assert table["distill"] == ["ppo", "sft"]  # a teacher is no stage


def test_stages_come_after_what_they_are_made_from_and_otherwise_in_the_order_given():
    start = ["tokenizer", "pretrain", "sft"]
    assert artifact_table.in_order(["dpo"]) == [*start, "dpo"]
    assert artifact_table.in_order(["rloo", "dpo", "ppo"]) == [*start, "rm", "rloo", "dpo", "ppo"]
    assert artifact_table.in_order(["sft", "unknown", "tokenizer"]) == [*start, "unknown"]


def test_a_new_stage_is_in_the_table_without_being_listed(stages):
    text = "task: components.tasks.fit.fit\nreads:\n  # not ${artifacts.ppo}\n  model: ${artifacts.rm}\n"
    (stages / "mine.yaml").write_text(text)
    assert artifact_table.read_by()["mine"] == ["rm"]
    assert artifact_table.in_order(["mine"]) == ["tokenizer", "pretrain", "sft", "rm", "mine"]


def test_a_stage_that_continues_from_its_own_artifact_is_listed_once(stages):
    (stages / "mine.yaml").write_text("task: components.tasks.fit.fit\nreads:\n  model: ${artifacts.mine}\n")
    assert artifact_table.in_order(["mine"]) == ["mine"]
