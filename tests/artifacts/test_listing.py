"""`gradus list`: runs and stages."""

import json
import os

import pytest

from components.artifacts import listing


def stage(folder, metrics, size, age, name="sft"):
    (folder / "export").mkdir(parents=True)
    card = json.dumps({"stage": name, "metrics": metrics})
    (folder / "export/card.json").write_text(card + " " * (size - len(card)))
    os.utime(folder / "export/card.json", (age, age))


def test_runs_are_listed_by_name_and_their_stages_by_age(tmp_path):
    stage(tmp_path / "b/rm", {"val/loss": 0.5, "val/accuracy": 0.8125}, 2000, 300, "rm")
    stage(tmp_path / "b/sft", {"val/loss": 0.25}, 1000, 200)
    stage(tmp_path / "b/rm-sweep/lr=1", {"val/loss": 0.5, "val/accuracy": 0.75}, 1000, 400, "rm")
    stage(tmp_path / "a/ppo", {"val/loss": 0.1, "val/score": 1.0, "val/gold": 0.5}, 1000, 100, "ppo")
    assert listing.entries(tmp_path) == [
        ("a", "ppo", "val/gold 0.5", 1000, 100.0),
        ("b", "sft", "val/loss 0.25", 1000, 200.0),
        ("b", "rm", "val/accuracy 0.8125", 2000, 300.0),
        ("b", "rm-sweep/lr=1", "val/accuracy 0.75", 1000, 400.0),
    ]


def test_unfinished_stages_and_those_without_a_card_are_listed_too(tmp_path):
    (tmp_path / "a/pretrain/checkpoints").mkdir(parents=True)
    (tmp_path / "a/sft/export").mkdir(parents=True)
    (tmp_path / "a/notes").mkdir()
    assert [entry[:4] for entry in listing.entries(tmp_path)] == [
        ("a", "pretrain", "not finished", 0),
        ("a", "sft", "", 0),
    ]


def test_an_error_without_runs_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(ValueError, match=r"contains no runs.*python train.py stage=all"):
        listing.entries(tmp_path / "logs")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1536, "1.54 kB"), (999_700, "1 MB"), (12_300_000_000_000_000, "1.23e+04 TB")],
)
def test_sizes_have_three_digits(size, text):
    assert listing.readable_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min"), (7200, "2 h"), (200_000, "2 d")]
)
def test_an_age_is_shown_in_its_largest_unit(seconds, text):
    assert listing.readable_age(1000.0, 1000.0 + seconds) == text


def test_a_stage_that_learns_from_comparisons_is_listed_by_how_many_it_ranks_correctly(tmp_path):
    metrics = {"val/loss": 0.5, "val/accuracy": 0.75, "val/margin": 1.5}
    for i, name in enumerate(("rm", "dpo", "simpo", "orpo")):
        stage(tmp_path / f"a/{name}", metrics, 1000, 100 + i, name)
    stage(tmp_path / "a/kto", {"val/loss": 0.5, "val/margin": 1.5}, 1000, 200, "kto")
    assert [entry.metric for entry in listing.entries(tmp_path)] == ["val/accuracy 0.75"] * 4 + ["val/margin 1.5"]


def test_a_distilled_policy_is_listed_by_its_distance_to_the_teacher(tmp_path):
    stage(tmp_path / "a/distill", {"val/gold": 0.5, "val/reverse_kl": 0.25, "train/loss": 0.125}, 1000, 100, "distill")
    assert [entry.metric for entry in listing.entries(tmp_path)] == ["val/reverse_kl 0.25"]
