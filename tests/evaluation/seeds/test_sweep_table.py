"""The table at the end of a sweep."""

import json
from typing import NamedTuple

from components.evaluation.seeds.sweep_table import lines


class Job(NamedTuple):
    overrides: list[str]
    folder: str
    code: int = 0
    metric: str | None = "val/accuracy"


def job(folder, number, settings, value, code=0, metric="val/accuracy"):
    place = folder / str(number)
    if value is not None:
        (place / "export").mkdir(parents=True)
        (place / "export/card.json").write_text(json.dumps({"metrics": {metric: value}}))
    return Job(["stage=rm", *settings], str(place), code, metric)


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


def test_a_failed_job_is_excluded_from_means(tmp_path):
    jobs = [
        job(tmp_path, 0, ["seed=0"], 0.5),
        job(tmp_path, 1, ["seed=1"], 0.9, code=1),
        job(tmp_path, 2, ["seed=2"], None),
    ]
    assert lines(jobs)[1:] == ["  as configured  0.5   n = 1, 1 failed, 1 without val/accuracy"]


def test_pipelines_have_no_artifact_of_their_own_and_no_table(tmp_path):
    assert lines([job(tmp_path, 0, ["seed=0"], None)]) == []
