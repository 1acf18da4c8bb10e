"""The table at the end of a sweep."""

import json
from typing import NamedTuple

import pytest

from components.evaluation.seeds.sweep_table import lines


class Job(NamedTuple):
    overrides: list[str]
    folder: str
    code: int = 0
    metric: str | None = "val/accuracy"
    mode: str | None = None


def job(folder, number, settings, value, code=0, metric="val/accuracy", stage="rm", mode=None):
    place = folder / str(number)
    if value is not None:
        (place / "export").mkdir(parents=True)
        (place / "export/card.json").write_text(json.dumps({"metrics": {metric: value}}))
    return Job([f"stage={stage}", *settings], str(place), code, metric, mode)


def test_seeds_are_joined_and_the_best_is_marked(tmp_path):
    values = {("lr=1", 0): 0.5, ("lr=1", 1): 0.7, ("lr=2", 0): 0.8, ("lr=2", 1): 0.8}
    jobs = [job(tmp_path, i, [lr, f"seed={seed}"], value) for i, ((lr, seed), value) in enumerate(values.items())]
    assert lines(jobs) == [
        "val/accuracy (mean ± 95% interval over seeds)",
        "  lr=1  0.6 ± 1.3   n = 2",  # 12.706 · 0.1414 / √2 = 1.27
        "  lr=2  0.8   n = 2   best",
    ]


def test_the_lowest_loss_is_best(tmp_path):
    jobs = [job(tmp_path, i, [f"lr={i}"], value, metric="val/loss") for i, value in enumerate((2.0, 1.0, 3.0))]
    assert [line.endswith("best") for line in lines(jobs)] == [False, False, True, False]


def test_the_lowest_kl_is_best(tmp_path):
    values = enumerate((2.0, 1.0, 3.0))
    jobs = [job(tmp_path, i, [f"lr={i}"], value, metric="val/reverse_kl") for i, value in values]
    assert [line.endswith("best") for line in lines(jobs)] == [False, False, True, False]


@pytest.mark.parametrize(("mode", "best"), [("min", "lr=0"), ("max", "lr=1"), (None, None)])
def test_a_metric_of_ones_own_is_compared_as_its_stage_selects_and_else_not_at_all(mode, best, tmp_path):
    jobs = [job(tmp_path, i, [f"lr={i}"], i + 1.0, metric="val/cost", mode=mode) for i in range(2)]
    marked = [line.split()[0] for line in lines(jobs) if line.endswith("best")]
    assert marked == ([best] if best else [])


def test_stages_are_not_joined_as_if_they_were_seeds(tmp_path):
    values = {("dpo", 1): 0.5, ("dpo", 2): 0.7, ("orpo", 1): 0.8, ("orpo", 2): 0.8}
    jobs = [job(tmp_path, i, [f"seed={key[1]}"], value, stage=key[0]) for i, (key, value) in enumerate(values.items())]
    assert lines(jobs) == [
        "val/accuracy (mean ± 95% interval over seeds)",
        "  stage=dpo   0.6 ± 1.3   n = 2",
        "  stage=orpo  0.8   n = 2   best",
    ]


def test_each_metric_has_a_table_of_its_own(tmp_path):
    jobs = [
        *(job(tmp_path, seed, [f"seed={seed}"], 2.0 + seed, metric="val/loss", stage="sft") for seed in (0, 1)),
        *(job(tmp_path, 2 + seed, [f"seed={seed}"], 0.8, stage="rm") for seed in (0, 1)),
    ]
    assert lines(jobs) == [
        "val/loss (mean ± 95% interval over seeds)",
        "  stage=sft  2.5 ± 6.4   n = 2",  # 12.706 · 0.7071 / √2 = 6.35
        "val/accuracy (mean ± 95% interval over seeds)",
        "  stage=rm  0.8   n = 2",
    ]


def test_losses_of_different_stages_have_no_best(tmp_path):
    jobs = [
        job(tmp_path, i, [], i + 1.0, metric="val/loss", stage=stage) for i, stage in enumerate(("pretrain", "sft"))
    ]
    assert [line.endswith("best") for line in lines(jobs)] == [False, False, False]


def test_a_failed_job_is_excluded_from_means(tmp_path):
    jobs = [
        job(tmp_path, 0, ["seed=0"], 0.5),
        job(tmp_path, 1, ["seed=1"], 0.9, code=1),
        job(tmp_path, 2, ["seed=2"], None),
    ]
    assert lines(jobs)[1:] == ["  as configured  0.5   n = 1, 1 failed, 1 without val/accuracy"]


def test_pipelines_have_no_artifact_of_their_own_and_no_table(tmp_path):
    assert lines([job(tmp_path, 0, ["seed=0"], None)]) == []
