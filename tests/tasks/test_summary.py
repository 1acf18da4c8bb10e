"""The tasks that combine runs: the summary of a sweep from its jobs' results, and which PPO runs are compared."""

import json
from pathlib import Path

import pytest

from components.artifacts.store import ArtifactError
from components.tasks import summary as summary_task
from components.tasks.overoptimization import ppo_runs
from components.tasks.summary import jobs_by_group
from tests.kit.composed_configs import compose_config


def write(file: Path, value: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


@pytest.fixture
def run(tmp_path) -> Path:
    """A run whose sweeps varied the seed, and the seed together with another key."""
    run = tmp_path / "logs/tiny"
    golds = {"seed=3": 1.0, "seed=10": 1.4, "seed=3,stage.beta=0.2": 0.5, "overrides.ppo=[a=1,b=2],seed=4": 0.25}
    for name, gold in golds.items():
        write(run / name / "report/report.json", {"models": {"sft": {"gold": 0.0}, "ppo": {"gold": gold}}})
    write(run / "report/report.json", {"models": {"sft": {"gold": 77}}})  # of no sweep
    for size, accuracy in ((40, 0.6), (2500, 0.8)):
        card = {"metrics": {"val/accuracy": accuracy, "val/ece": 0.1}, "inputs": {"data.comparisons": size}}
        write(run / f"seed=3/rm/comparisons={size}/export/card.json", card)
    write(run / "seed=3/rm/export/card.json", {"metrics": {}, "inputs": {"data.comparisons": 5000}})
    return run


def summed_up(run: Path) -> dict:
    summary_task.summary(compose_config(["stage=summary", f"paths.logs={run.parent}"]))
    return json.loads((run / "summary/summary.json").read_text())


def test_jobs_that_differ_only_in_the_seed_are_one_group(run):
    groups = jobs_by_group(run)
    seeds = {group: [job.seed for job in jobs] for group, jobs in groups.items()}
    assert seeds == {"": ["3", "10"], "stage.beta=0.2": ["3"], "overrides.ppo=[a=1,b=2]": ["4"]}
    assert sorted(groups[""][0].scaling) == [40, 2500]


def test_the_summary_is_metrics_a_page_and_pictures(run, capsys):
    (run / "summary").mkdir()
    found = summed_up(run)["groups"]
    assert found[""]["report"]["models"]["ppo"]["gold"]["values"] == [1.0, 1.4]
    assert found["stage.beta=0.2"]["report"]["models"]["ppo"]["gold"]["interval"] is None
    page = (run / "summary/summary.md").read_text()
    assert "Seeds 3, 10." in page and "Models over seeds (stage.beta=0.2)" in page
    assert "| gold score | 0.00 | 1.20 ± 2.54 |" in page
    for picture in ("gold.png", "scaling.png", "stage.beta=0.2_gold.png"):
        assert f"]({picture})" in page and (run / "summary" / picture).stat().st_size > 1000
    told = capsys.readouterr().out
    assert "1.20 ± 2.54" in told and "summary.md" in told


def test_the_summary_names_what_made_its_jobs_and_how_long_they_trained(run):
    made = {"commit": "abc", "hardware": "a processor", "versions": {"torch": "2", "python": "3"}}
    write(run / "seed=3/sft/export/card.json", made | {"metrics": {"seconds": 60}})
    write(run / "seed=3/ppo/a/export/card.json", made | {"metrics": {"seconds": 90}})
    write(run / "seed=10/report/report.json", made | {"commit": "abd", "models": {"sft": {"gold": 0.0}}})
    (run / "summary").mkdir()
    results = summed_up(run)
    assert results["commits"] == ["abc", "abd"]
    assert (results["hardware"], results["versions"]) == (["a processor"], ["torch 2, python 3"])
    assert results["minutes"]["seed=3"] == 2.5 and results["minutes"]["seed=10"] == 0
    page = (run / "summary/summary.md").read_text()
    said = "Made by commit abc, abd; a processor; torch 2, python 3; 0 to 2 minutes of training per job."
    assert page.endswith(f"{said}\n")


def test_a_run_without_a_sweep_says_how_to_make_one(tmp_path):
    with pytest.raises(ValueError, match=r"no sweep in .*tiny.*python train.py -m stage=all run=tiny seed=3,4,5,6,7"):
        summed_up(tmp_path / "logs/tiny")


def test_a_sweep_that_measured_nothing_is_not_an_error(tmp_path, capsys):
    (tmp_path / "logs/tiny/seed=3/sft").mkdir(parents=True)
    summary_task.summary(compose_config(["stage=summary", f"paths.logs={tmp_path}/logs"]))
    assert "nothing to summarize" in capsys.readouterr().out


def ppo_card(folder: Path, beta: float, reward: str = "mine", stage: str = "ppo") -> None:
    parents = {"reward": {"content": reward, "path": "x", "stage": "rm"}}
    write(folder / "export/card.json", {"stage": stage, "inputs": {"stage.beta": beta}, "parents": parents})


def test_the_ppo_runs_against_a_reward_model_are_found_by_increasing_beta(tmp_path, caplog):
    for name, beta in (("b", 0.1), ("a", 1.0), ("c", 0.0)):
        ppo_card(tmp_path / "ppo" / name, beta)
    ppo_card(tmp_path / "ppo/old", 0.2, reward="another")
    ppo_card(tmp_path / "ppo/grpo", 0.3, stage="grpo")
    ppo_card(tmp_path / "ppo", 0.4)  # stage=ppo itself
    found = ppo_runs(str(tmp_path / "ppo"), "mine")
    assert [(beta, folder.name) for beta, (folder, _) in found.items()] == [(0.0, "c"), (0.1, "b"), (1.0, "a")]
    assert "ppo/old is left out: it was trained against a reward model other than" in caplog.text


def test_the_ppo_runs_of_a_sweep_next_to_the_single_run_are_found_too(tmp_path):
    ppo_card(tmp_path / "ppo/beta=0", 0.0)
    ppo_card(tmp_path / "ppo-sweep/stage.beta=0.2", 0.2)
    found = ppo_runs(str(tmp_path / "ppo"), "mine")
    assert [(beta, folder.parent.name) for beta, (folder, _) in found.items()] == [(0.0, "ppo"), (0.2, "ppo-sweep")]


def test_two_runs_of_the_same_beta_and_no_run_at_all_are_rejected(tmp_path):
    with pytest.raises(ArtifactError, match="no PPO run against this reward model .*experiment=overoptimization"):
        ppo_runs(str(tmp_path), "mine")
    ppo_card(tmp_path / "a", 0.1)
    ppo_card(tmp_path / "b", 0.1)
    with pytest.raises(ArtifactError, match="both have beta 0.1"):
        ppo_runs(str(tmp_path), "mine")
