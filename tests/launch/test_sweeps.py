"""Sweeps of pipelines: experiments that are multiruns, variants of a stage, and the summary at the end.

The command line, hooks, pipeline and the real conf/ run in a copy of the project in which every other task only writes
down that it ran. The experiments of conf/ are composed entry by entry.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from components.launch import spawning, sweeps
from components.launch.schema import check
from components.launch.sweeps import Sweep
from tests.kit.children import OUTPUT, started, wait_for
from tests.kit.composed_configs import compose_config

ROOT = Path(__file__).resolve().parents[2]
TASKS = """
import json, os, sys, time
from pathlib import Path
from hydra.core.hydra_config import HydraConfig
from components.tasks.pipeline import pipeline

def run(cfg, imported=None):
    stage = HydraConfig.get().runtime.choices["stage"]
    if stage == "all":
        return pipeline(cfg)
    with Path("ran.jsonl").open("a") as notes:
        note = {"stage": stage, "folder": str(Path(cfg.paths.stage)), "export": cfg.paths.export, "force": cfg.force,
                "seed": cfg.seed, "beta": cfg.stage.get("beta"), "dpo": cfg.reads.get("dpo"), "sft": cfg.artifacts.sft,
                "pid": os.getpid(), "parent": os.getppid(), "arguments": sys.argv[1:],
                "checked": os.environ.get("GRADUS_OVERRIDES_CHECKED"), "cwd": os.getcwd()}
        notes.write(json.dumps(note) + "\\n")
    if stage == os.environ.get("LONG"):
        time.sleep(300)
    broken = stage == os.environ.get("BROKEN") or str(cfg.seed) == os.environ.get("BROKEN_SEED")
    sys.exit(7 if broken else 0)
"""
PLAN = """
from typing import NamedTuple
from components.launch import spawning, sweeps

class Step(NamedTuple):
    entry: str
    arguments: list

def steps_of(cfg):
    force = [] if cfg.force else ["force=changed"]
    return [
        Step(s, [*spawning.stage_arguments(cfg, s), *force, *spawning.own_overrides(cfg, s)]) for s in cfg.stages
    ]

def check(steps): pass
"""
OWN = """# @package _global_
# A multirun over two seeds, with a variant of a stage
defaults:
  - override /stage: all
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      seed: 3,4
stages: [sft, ppo/beta=0.05, eval]
overrides:
  ppo/beta=0.05: [stage.beta=0.05]
  eval: ["+reads.dpo=${later:artifacts.dpo}"]
"""


def copy_of_the_project(project: Path) -> Path:
    (project / "components/tasks").mkdir(parents=True)
    shutil.copy(ROOT / "train.py", project)
    shutil.copytree(ROOT / "conf", project / "conf")
    for room in ("launch", "system"):
        shutil.copytree(ROOT / "components" / room, project / "components" / room)
    (project / "components/artifacts").mkdir()
    shutil.copy(ROOT / "components/artifacts/renamed.py", project / "components/artifacts")  # which launch reads
    (project / "components/__init__.py").touch()
    for name in ("__init__", "pipeline"):
        shutil.copy(ROOT / f"components/tasks/{name}.py", project / "components/tasks")
    (project / "components/tasks/dispatch.py").write_text(TASKS)
    (project / "components/tasks/command_line.py").write_text("def warn_of_unused_by_all(cfg, entries): pass\n")
    (project / "components/tasks/learning_summary.py").write_text("def show(cfg): pass\n")
    (project / "components/tasks/staleness.py").write_text("def is_up_to_date(cfg): return False\n")
    with (project / "components/launch/forking.py").open("a") as forking:  # stand-ins need no imports
        forking.write("\n_targets = lambda config: ()\n")
    (project / "components/tasks/plan.py").write_text(PLAN)
    (project / "components/launch/schema.py").write_text("def check(cfg): pass\n")
    (project / "conf/experiment/own.yaml").write_text(OWN)
    return project


def train(project: Path, *arguments: str, **environment: str) -> tuple[int, list[dict], str]:
    """Exit status, what ran in order, and the output of `python train.py <arguments>` in the project's folder."""
    (project / "ran.jsonl").unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "train.py", *arguments],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    notes = project / "ran.jsonl"
    lines = notes.read_text().splitlines() if notes.exists() else []
    return done.returncode, [json.loads(line) for line in lines], done.stdout + done.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return copy_of_the_project(tmp_path_factory.mktemp("sweeps") / "copy")


@pytest.fixture(scope="module")
def swept(project) -> list[dict]:
    code, ran, said = train(project, "experiment=own")
    assert code == 0, said
    return ran


@pytest.mark.slow
def test_an_experiment_that_is_a_multirun_is_one_plain_command(swept):
    """No -m, no stage= and no seed= on the command line: the experiment sets them, and every stage runs once."""
    ran = [(note["stage"], note["folder"]) for note in swept]
    assert ran == [
        *(
            (stage, f"logs/tiny/seed={seed}/{folder}")
            for seed in (3, 4)
            for stage, folder in (("sft", "sft"), ("ppo", "ppo/beta=0.05"), ("eval", "report"))
        ),
        ("summary", "logs/tiny/summary"),
    ]
    assert [note["seed"] for note in swept] == [3] * 3 + [4] * 3 + [0]


@pytest.mark.slow
def test_a_variant_of_a_stage_has_its_own_settings_and_folder(swept):
    variant = swept[1]
    assert variant["beta"] == 0.05
    assert variant["export"] == "logs/tiny/seed=3/ppo/beta=0.05/export"
    assert variant["sft"] == "logs/tiny/seed=3/sft/export"
    assert variant["force"] == "changed"


@pytest.mark.slow
def test_what_is_resolved_later_names_the_jobs_own_run(swept):
    assert [note["dpo"] for note in swept if note["stage"] == "eval"] == [
        "logs/tiny/seed=3/dpo/export",
        "logs/tiny/seed=4/dpo/export",
    ]


@pytest.mark.slow
def test_a_seed_on_the_command_line_replaces_the_experiments_and_a_single_one_keeps_its_folder(project):
    code, ran, said = train(project, "experiment=own", "seed=6", "stages=[sft]")
    assert code == 0, said
    assert [note["folder"] for note in ran] == ["logs/tiny/seed=6/sft", "logs/tiny/summary"]
    assert ran[0]["seed"] == 6


@pytest.mark.slow
def test_a_sweep_whose_jobs_all_fail_ends_with_their_exit_status_and_no_summary(project):
    code, ran, said = train(project, "-m", "stage=all", "seed=8,9", "stages=[sft,ppo,eval]", BROKEN="ppo")
    assert code == 7
    assert [note["folder"] for note in ran] == [
        f"logs/tiny/seed={seed}/{stage}" for seed in (8, 9) for stage in ("sft", "ppo")
    ]
    assert "stage=ppo failed with exit status 7" in said and "2 of 2 jobs failed" in said


def test_a_forked_stage_has_what_a_fresh_one_has(project):
    """Each a process of its own below the pipeline's, with its arguments, environment, log file and .hydra folder."""
    code, ran, said = train(project, "stage=all", "run=forked", "stages=[sft,ppo]")
    assert code == 0, said
    assert len({note["pid"] for note in ran}) == 2 and len({note["parent"] for note in ran}) == 1
    for note in ran:
        assert "hydra.mode=RUN" in note["arguments"] and f"stage={note['stage']}" in note["arguments"]
        assert (note["checked"], note["cwd"]) == ("1", str(project))
        assert (project / note["folder"] / "train.log").is_file()
        tasks = (project / note["folder"] / ".hydra/overrides.yaml").read_text()
        assert f"stage={note['stage']}" in tasks and "force=changed" in tasks
    assert said.count("stage sft of run forked, in logs/forked/sft\n") == 1


def test_a_terminated_pipeline_terminates_the_stage_that_it_forked(project):
    (project / "ran.jsonl").unlink(missing_ok=True)
    command = ["train.py", "stage=all", "run=ended", "stages=[sft,ppo]"]
    pipeline = started(project, *command, env={**os.environ, "LONG": "sft"})
    wait_for(project / "ran.jsonl", pipeline, project)
    pipeline.send_signal(signal.SIGTERM)
    assert pipeline.wait(timeout=300) == 128 + signal.SIGTERM
    said = (project / OUTPUT).read_text()
    assert "stage=sft was stopped (exit status 143); the same command resumes from there" in said
    note = json.loads((project / "ran.jsonl").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(note["pid"], 0)


@pytest.mark.slow
def test_the_other_jobs_of_a_sweep_run_and_are_summarized_if_one_fails(project):
    code, ran, said = train(project, "-m", "stage=all", "seed=8,9,10", "stages=[sft,ppo]", BROKEN_SEED="9")
    assert code == 7
    assert [note["folder"] for note in ran] == [
        "logs/tiny/seed=8/sft",
        "logs/tiny/seed=8/ppo",
        "logs/tiny/seed=9/sft",
        "logs/tiny/seed=10/sft",
        "logs/tiny/seed=10/ppo",
        "logs/tiny/summary",
    ]
    assert "failed with exit status 7: stage=all seed=9" in said and "1 of 3 jobs failed" in said


def config_of(
    *overrides: str,
    run: str = "${hydra:runtime.choices.model}",
    after=("stage=summary",),
    force: bool = False,
    **params: str,
):
    hydra = {
        "overrides": {"task": list(overrides), "hydra": []},
        "sweeper": {"params": params or None},
        "runtime": {"config_sources": []},
        "job": {"config_name": "train"},
    }
    return OmegaConf.create({"hydra": hydra, "run": run, "force": force, "resume": "auto", "after_sweep": list(after)})


@pytest.mark.parametrize(
    ("sweep", "config", "summaries"),
    [
        (["stage=all", "seed=3,4", "paths.logs=x"], {}, [["paths.logs=x"]]),
        (["experiment=own", "debug=smoke"], {"seed": "3,4"}, [["experiment=own", "debug=smoke"]]),
        (["stage=all", "seed=1,2", "stages=[sft]", "stage.beta=1"], {}, [[]]),
        (["stage=all", "model=tiny,small", "seed=1,2"], {}, [["model=tiny"], ["model=small"]]),
        (["stage=all", "run=a,b", "model=small"], {}, [["model=small", "run=a"], ["model=small", "run=b"]]),
        (["stage=all", "run=a,b", "model=tiny,small"], {}, [["run=a"], ["run=b"]]),
        (["stage=all", "run=a", "model=tiny,small"], {"run": "a"}, [["run=a"]]),  # both are in run a, by their model
        (["experiment=optimum", "model=tiny,small"], {"run": "optimum"}, [["experiment=optimum"]]),
    ],
)
def test_the_summary_is_made_once_per_run_without_what_was_varied(sweep, config, summaries, monkeypatch):
    launched = []
    monkeypatch.setattr(spawning, "launch", lambda arguments: launched.append(arguments) or 0)
    Sweep().on_multirun_end(config_of(*sweep, **config))
    usual = ["--config-name=train", "hydra.mode=RUN"]
    assert launched == [[*usual, *expected, "stage=summary"] for expected in summaries]


@pytest.mark.parametrize(("force", "command"), [(False, "command"), (True, "command with force=changed")])
def test_the_command_that_reruns_failed_jobs_does_not_rerun_the_others(force, command, monkeypatch, caplog):
    jobs = [sweeps.Job([f"seed={code}"], "nowhere", code, None, None) for code in (0, 7)]
    monkeypatch.setattr(sweeps, "JOBS", jobs)
    with pytest.raises(SystemExit):
        Sweep().on_multirun_end(config_of("stage=rm", "seed=0,7", after=(), force=force))
    assert f"1 of 2 jobs failed; the same {command} reruns them, and only them" in caplog.text


def test_a_sweep_whose_summary_fails_ends_with_its_exit_status(monkeypatch):
    monkeypatch.setattr(spawning, "launch", lambda arguments: 7)
    with pytest.raises(SystemExit) as stopped:
        Sweep().on_multirun_end(config_of("stage=all", "seed=3,4"))
    assert stopped.value.code == 7


def test_without_after_sweep_nothing_is_run_at_the_end(monkeypatch):
    monkeypatch.setattr(spawning, "launch", None)
    Sweep().on_multirun_end(config_of("stage=rm", "seed=1,2", after=()))


def particular_entries() -> list[tuple[str, str]]:
    """(experiment, entry of stages) of the sweeps whose entries have overrides or a label, and the last of each."""
    found = []
    for name in ("overoptimization", "bakeoff", "scaling", "rlvr"):
        cfg = compose_config([f"experiment={name}"])
        found += [
            (name, entry) for entry in cfg.stages if "/" in entry or cfg.overrides.get(entry) or entry == cfg.stages[-1]
        ]
    return found


@pytest.mark.parametrize(("experiment", "entry"), particular_entries(), ids=lambda part: part.replace("/", "-"))
def test_every_entry_of_an_experiment_composes_and_fits_the_signatures(experiment, entry):
    model = ["model.path=logs/tiny/seed=3/theirs"] if experiment == "rlvr" else []
    whole = compose_config([f"experiment={experiment}", "seed=3", *model])
    stage, _, label = entry.partition("/")
    folder = [f"paths.folder='{entry}'"] if label else []
    job = [f"experiment={experiment}", *model, "seed=3", f"stage={stage}", *folder]
    job += ["run='tiny/seed=3'", "force=changed"]
    cfg = compose_config([*job, *spawning.own_overrides(whole, entry)])
    check(cfg)
    assert cfg.paths.export == f"logs/tiny/seed=3/{'report' if stage == 'eval' else entry}/export"
    assert all(path.startswith("logs/tiny/seed=3/") for path in cfg.reads.values())
    if label.startswith("beta="):
        assert cfg.stage.beta == float(label.removeprefix("beta="))
    if experiment == "overoptimization" and stage == "ppo":
        assert cfg.reads.reward == "logs/tiny/seed=3/rm/weak/export" and not cfg.gate.enabled
    if experiment == "rlvr":
        assert cfg.context == 128 and cfg.data.tasks[0]["operators"] == ["+"]
        assert (cfg.data.val_fraction, cfg.stage.get("beta", 0)) == (0.15, 0)  # the same problems are held out
        assert "reward" not in cfg.stage or cfg.stage.reward.shuffle is (label == "shuffled")
    if label.startswith("comparisons="):
        assert cfg.data.comparisons == int(label.removeprefix("comparisons=")) and cfg.data.answers_seed == 103


@pytest.mark.parametrize("experiment", ["overoptimization", "bakeoff", "scaling"])
def test_sweeps_share_their_first_models_with_a_plain_pipeline_of_the_seed(experiment):
    """The inputs of pretraining and SFT are the same, so they are up to date."""
    for stage in ("pretrain", "sft"):
        plain = compose_config([f"stage={stage}", "seed=3"])
        ours = compose_config([f"experiment={experiment}", f"stage={stage}", "seed=3"])
        for part in ("stage", "data", "trainer", "model", "tokenizer", "seed"):
            assert ours[part] == plain[part]


SMALL = """# @package _global_
# Over-optimization in seconds: a tiny model, few steps
defaults:
  - override /stage: all
hydra: {mode: MULTIRUN, sweeper: {params: {seed: "3,4"}}}
stages: [tokenizer, pretrain, sft, rm/weak, ppo/beta=0, ppo/beta=0.1, overoptimization]
gate: {enabled: false}
artifacts: {rm: "${paths.logs}/${run}/rm/weak/export"}
model: {hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 2}
overrides:
  tokenizer: [data.num_documents=400, tokenizer.vocab_size=500]
  pretrain: [data.num_documents=400, data.batch_size=4, trainer.max_steps=3]
  sft: [data.demonstrations=60, trainer.max_epochs=1]
  rm/weak: [data.comparisons=40, world.noise=0.1, trainer.max_epochs=1, data.val_fraction=0.2]
  ppo/beta=0: [stage.beta=0, data.prompts_per_rollout=8, trainer.max_steps=6, stage.epochs=1, stage.minibatches=1]
  ppo/beta=0.1: [stage.beta=0.1, data.prompts_per_rollout=8, trainer.max_steps=6, stage.epochs=1, stage.minibatches=1]
  overoptimization: [stage.samples_per_prompt=4, stage.max_prompts=3, stage.max_new_tokens=6]
"""


@pytest.mark.slow
def test_a_sweep_of_real_stages_ends_in_a_summary_and_does_nothing_the_second_time(tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/small.yaml").write_text(SMALL)
    command = [sys.executable, str(ROOT / "train.py"), f"--config-dir={tmp_path}/mine", "experiment=small"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "logs/tiny/summary/summary.json").read_text())["groups"][""]
    assert found["seeds"] == ["3", "4"]
    assert list(found["overoptimization"]["runs"]) == ["0", "0.1"]
    assert found["overoptimization"]["runs"]["0"]["final"]["gold"]["n"] == 2
    assert (tmp_path / "logs/tiny/summary/overoptimization.png").stat().st_size > 1000
    assert "Recommended: β" in done.stdout
    command += ["seed=3", "stages=[sft,rm/weak,'ppo/beta=0',overoptimization]"]
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.count("is up to date") == 3  # the fourth shows its results
    assert not re.search(r"\bstep \d|data: ", again.stdout)  # nothing was trained or read
