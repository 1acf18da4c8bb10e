"""What /v1/runs says about the folders of the served models."""

import json
from pathlib import Path

import pytest

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from components.serving.api import new_app
from components.serving.engine import Engine
from components.serving.runs import Runs
from components.serving.served import Served
from components.serving.service import Service
from tests.kit.carded_run import write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "tiny")


def served(*folders):
    return [Served(f"{folder.parents[1].name}/{folder.parent.name}", None, None, folder) for folder in folders]


def test_a_run_has_the_lineage_of_all_its_stages_and_the_curves_of_those_that_logged(run):
    runs = Runs(served(run / "sft/export", run / "ppo/export"))
    assert runs.listed() == [{"id": "tiny", "object": "run", "models": ["tiny/sft", "tiny/ppo"]}]
    described = runs.described("tiny")
    assert [node["title"] for node in described["lineage"] if node["kind"] == "artifact"] == [
        "tokenizer",
        "pretrain",
        "sft",
        "rm",
        "ppo",
    ]
    assert described["curves"] == [
        {"stage": "pretrain", "metric": "train/loss", "steps": [1, 2], "values": [3.0, 2.0]},
        {"stage": "pretrain", "metric": "val/loss", "steps": [2], "values": [None]},
    ]
    assert described["report"] is None
    assert described["notes"] == ["No report card: python train.py stage=eval run=tiny makes it."]
    json.dumps(described, allow_nan=False)
    assert str(run.parent) not in json.dumps(described)


def test_the_report_card_is_its_summary_and_tables(run):
    (run / "report").mkdir()
    model = {"score": 0.5, "score_ci": [0.25, 0.75], "samples": []}
    sampling = {"prompts": 4, "samples_per_prompt": 2, "max_new_tokens": 8, "train_prompts": 0}
    results = {"models": {"sft": model}, "sampling": sampling, "commit": "abc", "minutes": {"sft": 1.0}}
    (run / "report/report.json").write_text(json.dumps(results))
    report = Runs(served(run / "sft/export")).described("tiny")["report"]
    assert report["tables"][0] == {
        "title": "Models",
        "columns": ["", "sft"],
        "rows": [["reward model's score", "0.50 [0.25, 0.75]"]],
        "note": "4 held-out prompts × 2 samples at temperature 1, at most 8 tokens. [95% interval over prompts]",
    }
    assert report["summary"][-1] == "Minutes: sft 1.0; total 1.0." and report["made"] == ["commit: abc"]


@pytest.mark.parametrize(
    "file, content, part",
    [
        ("report/report.json", '{"models": []}', "No report card: report.json is damaged"),
        ("report/report.json", "{", "No report card: report.json is damaged"),
        ("pretrain/csv/metrics.csv", "a,b\n1,2\n", "No curves: what the run logged cannot be read"),
        ("sft/export/card.json", '{"parents": 3}', "No lineage: export/card.json is not a card of Gradus"),
    ],
)
def test_a_damaged_file_costs_its_part_alone_and_is_named(run, file, content, part):
    (run / file).parent.mkdir(exist_ok=True)
    (run / file).write_text(content)
    described = Runs(served(run / "ppo/export")).described("tiny")
    assert any(note.startswith(part) for note in described["notes"])
    assert described["curves"] or described["lineage"]


def test_a_folder_that_is_no_runs_says_what_it_lacks(tmp_path):
    runs = Runs([Served("owner/name", None, None, tmp_path), Served("other", None, None, Path())])
    assert [one["id"] for one in runs.listed()] == ["owner/name", "other"]
    described = runs.described("owner/name")
    assert described["lineage"] == described["curves"] == [] and described["report"] is None
    assert [note.partition(":")[0] for note in described["notes"]] == ["No lineage", "No curves", "No report card."]


def test_runs_need_the_key_and_an_unknown_one_is_404(run):
    service = Service(served(run / "sft/export"), Engine({}))
    with TestClient(new_app(service, keys=["secret"])) as client:
        assert client.get("/v1/runs").status_code == client.get("/v1/runs/tiny").status_code == 401
        client.headers["Authorization"] = "Bearer secret"
        assert client.get("/v1/runs").json()["data"][0]["id"] == "tiny"
        assert client.get("/v1/runs/tiny").json()["lineage"]
        answer = client.get("/v1/runs/..%2f..")
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "run_not_found"
