"""When an artifact is up to date, what a stage reads, and what the messages say."""

import json
import os

import pytest

from components.artifacts import lineage
from components.artifacts.metadata import differing
from components.artifacts.store import ArtifactError, write_artifact

INPUTS = {"seed": 1, "stage.lr": 0.1, "data (content)": "abc"}


@pytest.fixture
def export(tmp_path, small_tokenizer):
    folder = tmp_path / "tiny/sft/export"
    write_artifact(folder, card={"stage": "sft", "inputs": INPUTS}, tokenizer=small_tokenizer)
    return folder


def test_an_artifact_from_the_same_inputs_is_up_to_date(export):
    assert lineage.is_up_to_date(export, dict(INPUTS), force=False)
    assert lineage.is_up_to_date(export, dict(INPUTS), force="changed")
    assert not lineage.is_up_to_date(export, dict(INPUTS), force=True)


def test_a_finished_stage_is_not_replaced_silently(export):
    changed = INPUTS | {"stage.lr": 0.2}
    with pytest.raises(
        ArtifactError, match=r": stage.lr\. .*force=true.*run=<name>\nBefore and now: stage.lr: 0.1 → 0.2$"
    ):
        lineage.is_up_to_date(export, changed, force=False)
    assert not lineage.is_up_to_date(export, changed, force="changed")
    assert not lineage.is_up_to_date(export.with_name("other"), changed, force=False)


def test_a_missing_predecessor_is_named_with_the_commands_that_make_it(tmp_path):
    known = {stage: f"{tmp_path}/tiny/{stage}/export" for stage in ("tokenizer", "pretrain", "sft", "rm")}
    with pytest.raises(ArtifactError) as caught:
        lineage.require({"tokenizer": known["tokenizer"], "model": known["sft"]}, known, "model=tiny")
    told = str(caught.value)
    assert f"no sft artifact at {known['sft']}" in told
    assert "python train.py stage=sft model=tiny" in told
    assert "stage=all model=tiny 'stages=[tokenizer,pretrain,sft]'" in told
    assert "artifacts.sft=<folder>" in told


def test_artifacts_that_are_there_are_described_by_content(export):
    parents = lineage.require({"model": str(export)}, {"sft": str(export)}, "model=tiny")
    card = json.loads((export / "card.json").read_text())
    assert parents == {"model": {"path": str(export), "stage": "sft", "content": card["content"]}}


def test_different_tokenizers_are_refused_with_both_fingerprints():
    lineage.same_tokenizer({"a": "11", "b": "11"})
    with pytest.raises(ArtifactError, match=r"(?s)a: 11.*b: 22"):
        lineage.same_tokenizer({"a": "11", "b": "22"})


def test_a_teacher_with_another_vocabulary_is_refused_with_both_folders_and_the_first_difference():
    lineage.same_vocabulary("student", ["a", "b"], "teacher", ["a", "b", ""], "artifacts.teacher")  # a hole at the end
    for others, found in ((["a", "c"], "id 1 is 'c' for the teacher and 'b'"), (["a", "b", "c"], "id 2 is 'c'.* ''")):
        with pytest.raises(ArtifactError, match=f"teacher teacher .* student student: {found}.*artifacts.teacher=<fol"):
            lineage.same_vocabulary("student", ["a", "b"], "teacher", others, "artifacts.teacher")


def test_the_artifacts_of_a_run_follow_those_that_they_were_made_from_whatever_their_age(tmp_path):
    parents = {"ppo": ["sft", "rm"], "old": [], "rm": ["sft"], "pretrain": ["tokenizer"], "sft": ["pretrain"]}
    for age, (stage, others) in enumerate(parents.items()):
        export = tmp_path / stage / "export"
        export.mkdir(parents=True)
        card = {"parents": {other: {"stage": other} for other in others}}
        (export / "card.json").write_text(json.dumps(card))
        os.utime(export, (age, age))
    order = lineage.in_order(tmp_path.glob("*/export"))
    assert [export.parent.name for export in order] == ["pretrain", "sft", "rm", "ppo", "old"]


def test_what_a_killed_run_left_of_writing_an_artifact_is_removed(export):
    for name in ("export.writing-123", "export.previous"):
        (export.parent / name).mkdir()
        (export.parent / name / "card.json").write_text("{")
    assert lineage.is_up_to_date(export, dict(INPUTS), force=False)
    assert [path.name for path in export.parent.iterdir()] == ["export"]


def test_an_artifact_that_exists_only_under_its_earlier_name_is_restored_not_removed(export):
    export.rename(export.with_name("export.previous"))
    assert lineage.is_up_to_date(export, dict(INPUTS), force=False)
    assert [path.name for path in export.parent.iterdir()] == ["export"]


def test_where_data_is_does_not_matter_since_its_content_does():
    before = {"data.path": "d.jsonl", "data.mixture.0.path": "a", "data.pretraining.root": "/b", "data (content)": "1"}
    assert differing(before, {name: f"/mnt/{value}" for name, value in before.items()}) == ["data (content)"]
    assert differing({"model.path": "a"}, {"model.path": "b"}) == ["model.path"]
