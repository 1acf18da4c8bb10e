"""train.py from the outside: folders, processes, exit codes and messages.

The command line, the hooks and the real conf/ run in a copy of the project whose tasks are stand-ins, so that a job
takes a fraction of a second: each writes down who it is and ends as its stage says.
"""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from components.launch import choices, exit_codes, run_folder, sweep_folders
from components.launch.overrides import as_typed
from components.launch.quiet_logs import quiet_lightning
from components.launch.schema import check
from components.launch.sweep_folders import SWEPT
from components.launch.sweeps import Sweep
from tests.kit.children import started, wait_for
from tests.kit.composed_configs import compose_config

ROOT = Path(__file__).resolve().parents[1]
TASKS = """
import gc, json, os, sys, time
from pathlib import Path
from components.launch import spawning

ENDS = {
    "good": lambda: None,
    "mistaken": lambda: (_ for _ in ()).throw(ValueError("no reward model. Make it with: python train.py stage=rm")),
    "broken": lambda: [][1],
    "interrupted": lambda: (_ for _ in ()).throw(KeyboardInterrupt()),
    "seven": lambda: sys.exit(7),
    "long": lambda: time.sleep(60),
}

def run(cfg, imported=None):
    Path(cfg.paths.stage, "ran.json").write_text(json.dumps({
        "pid": os.getpid(), "parent": os.getppid(), "time": time.time(), "seed": cfg.seed, "run": cfg.run,
        "reads": str(cfg.artifacts.sft), "arguments": spawning.stage_arguments(cfg, "next"),
        "collections": gc.get_stats()[1]["collections"],
    }))
    ENDS[cfg.stage.ends]()
"""
STAGE = """# @package _global_
# A stand-in stage that ends as it says
task: components.tasks.dispatch.run
artifacts:
  sft: ${{paths.logs}}/${{from}}/sft/export
  pretrain: ${{paths.logs}}/${{from}}/pretrain/export
stage:
  ends: {ends}
"""
ENDINGS = ("good", "mistaken", "broken", "interrupted", "seven", "long")


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of the project with stand-in tasks and stages, in a folder whose name is hard to quote."""
    project = tmp_path / "it's, a=copy"
    (project / "components").mkdir(parents=True)
    shutil.copy(ROOT / "train.py", project)
    shutil.copytree(ROOT / "conf", project / "conf", ignore=shutil.ignore_patterns("stage"))
    for room in ("launch", "system"):
        shutil.copytree(ROOT / "components" / room, project / "components" / room)
    (project / "components/artifacts").mkdir()
    shutil.copy(ROOT / "components/artifacts/renamed.py", project / "components/artifacts")  # which launch reads
    (project / "components/__init__.py").touch()
    (project / "components/tasks").mkdir()
    (project / "components/tasks/__init__.py").touch()
    (project / "components/tasks/dispatch.py").write_text(TASKS)
    (project / "components/launch/schema.py").write_text("def check(cfg): pass\n")
    (project / "conf/stage").mkdir()
    for ends in ENDINGS:
        (project / f"conf/stage/{ends}.yaml").write_text(STAGE.format(ends=ends))
    (project / "conf/stage/next.yaml").write_text(STAGE.format(ends="good"))
    (project / "conf/stage/after.yaml").write_text(STAGE.format(ends="good"))
    return project


def train(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python train.py <arguments>` in the project's folder."""
    return subprocess.run(
        [sys.executable, "train.py", *arguments],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )


def ran(project: Path) -> dict[str, dict]:
    """What the jobs recorded, by their folder below logs/, in the order in which they ran."""
    notes = {
        str(p.parent.relative_to(project / "logs")): json.loads(p.read_text()) for p in project.glob("logs/**/ran.json")
    }
    return dict(sorted(notes.items(), key=lambda item: item[1]["time"]))


def test_help_and_completion_import_nothing_heavy():
    heavy = {"torch", "lightning", "datasets", "transformers", "pydantic", "sentencepiece"}
    code = f"import sys, train; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_help_needs_no_stage_and_lists_the_choices(project):
    (project / "conf/stage/good.yaml").rename(project / "conf/stage/all.yaml")
    done = train(project, "--help")
    assert done.returncode == 0, done.stderr
    assert "stage: " in done.stdout and "trainer: auto, cpu, ddp, fsdp, gpu" in done.stdout


def test_without_a_stage_the_choices_are_listed_and_nothing_is_written(project):
    done = train(project)
    assert done.returncode == 0
    assert "stage=interrupted  A stand-in stage that ends as it says" in done.stdout
    assert not (project / "logs").exists()


def test_a_single_run_writes_logs_run_stage(project):
    done = train(project, "stage=good")
    assert done.returncode == 0, done.stderr
    assert list(ran(project)) == ["tiny/good"]
    assert (project / "logs/tiny/good/.hydra/config.yaml").is_file()
    assert (project / "logs/tiny/good/train.log").is_file()
    assert ran(project)["tiny/good"]["collections"] == 0  # of all that was imported and composed, which takes long


def test_a_sweep_over_stages_runs_them_in_order_each_in_a_process_of_its_own(project, tmp_path):
    """Paths are relative to the working directory, wherever train.py is."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    script = str(project / "train.py")
    command = [sys.executable, script, "-m", "stage=good,after,next"]
    subprocess.run(command, cwd=elsewhere, check=True, capture_output=True)
    jobs = ran(elsewhere)
    assert list(jobs) == ["tiny/good", "tiny/after", "tiny/next"]
    assert len({job["pid"] for job in jobs.values()}) == 3
    assert len({job["parent"] for job in jobs.values()}) == 1


@pytest.mark.parametrize(
    ("sweep", "job", "folder"),
    [
        (["stage=pretrain,sft"], ["stage=pretrain"], "tiny/pretrain"),
        (["stage=pretrain", "model=tiny,small"], ["stage=pretrain", "model=small"], "small/pretrain"),
        (["stage=pretrain", "run=a,b"], ["stage=pretrain", "run=b"], "b/pretrain"),
        (
            ["stage=pretrain", "run=x", "model=tiny,small"],
            ["stage=pretrain", "run=x", "model=small"],
            "x/pretrain-sweep/model=small",
        ),
        (
            ["stage=pretrain", "force=true", "seed=range(1,4)"],
            ["stage=pretrain", "force=true", "seed=2"],
            "tiny/pretrain-sweep/seed=2",
        ),
        (
            ["stage=pretrain", "seed=1,2", "artifacts.sft=a/b,a/c"],
            ["stage=pretrain", "seed=1", "artifacts.sft=a/b"],
            "tiny/pretrain-sweep/seed=1,artifacts.sft=a_b-71b0032e",  # a_b is another value
        ),
        (
            ["stage=pretrain", "trainer.max_steps=1,2", "seed=3"],
            ["stage=pretrain", "trainer.max_steps=1", "seed=3"],
            "tiny/pretrain-sweep/trainer.max_steps=1",
        ),
        (
            ["stage=pretrain", "stage.optimizer.lr=1e-4,3e-4", "seed=3"],
            ["stage=pretrain", "stage.optimizer.lr=1e-4", "seed=3"],
            "tiny/pretrain-sweep/stage.optimizer.lr=0.0001",
        ),
        (["stage=all", "seed=1,2"], ["stage=all", "seed=1"], "tiny/./seed=1"),
        (["stage=pretrain,eval"], ["stage=eval"], "tiny/report"),
        (  # a name that does not depend on the model would be that of all models
            ["experiment=optimum", "model=micro,tiny", "seed=0"],
            ["experiment=optimum", "model=micro", "seed=0"],
            "optimum/./model=micro",
        ),
        (
            ["stage=pretrain", "debug=smoke", "model=micro,tiny"],
            ["stage=pretrain", "debug=smoke", "model=micro"],
            "micro-smoke/pretrain",
        ),
        (
            ["stage=pretrain", "run=x-${hydra:runtime.choices.model}", "model=micro,tiny"],
            ["stage=pretrain", "run=x-${hydra:runtime.choices.model}", "model=micro"],
            "x-micro/pretrain",
        ),
        (["stage=pretrain", "model=depth,tiny"], ["stage=pretrain", "model=depth"], "depth_6/pretrain"),
        (  # nor does this folder depend on the stage
            ["experiment=koala_13b", "stage=sft,rm"],
            ["experiment=koala_13b", "stage=rm"],
            "llama_13b/sft/koala-sweep/stage=rm",
        ),
        (["paths.folder=x", "stage=eval,rm"], ["paths.folder=x", "stage=eval"], "tiny/x-sweep/stage=eval"),
        (["stage=sft,rm", "debug=overfit"], ["stage=rm", "debug=overfit"], "tiny/rm/overfit"),
    ],
)
def test_a_job_of_a_sweep_gets_a_folder_named_after_only_what_is_varied(sweep, job, folder, monkeypatch):
    monkeypatch.setenv(SWEPT, "")
    Sweep().on_multirun_start(OmegaConf.create({"hydra": {"overrides": {"task": sweep}, "sweeper": {}}}))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3", job_name="train"):
        HydraConfig.instance().set_config(compose("train", as_typed(job), return_hydra_config=True))
    assert HydraConfig.get().sweep.subdir == folder


def test_a_stage_of_ones_own_names_its_folder_wherever_its_file_is(tmp_path, monkeypatch):
    monkeypatch.setenv(SWEPT, "stage")
    (tmp_path / "stage").mkdir()
    text = (ROOT / "conf/stage/eval.yaml").read_text().replace("folder: report", "folder: cards")
    (tmp_path / "stage/mine.yaml").write_text(text)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3", job_name="train"):
        found = compose("train", ["stage=mine", f"hydra.searchpath=['file://{tmp_path}']"], return_hydra_config=True)
        HydraConfig.instance().set_config(found)
    assert HydraConfig.get().sweep.subdir == "tiny/cards"


def folder_of(*overrides: str) -> str:
    """The folder of a job with these swept overrides, below its stage's."""
    return sweep_folders.folder_name(OverridesParser.create().parse_overrides(list(overrides)))


ODD = [
    "a/b",
    "a_b",
    "'a b'",
    "'a  b'",
    "'A_b'",
    "A_B",
    "'a\nb'",
    "'a\"b'",
    "'it\\'s'",
    "'..'",
    "'../a'",
    "''",
    "'_'",
    "'1'",
    "1",
    "1.0",
    "true",
    "'true'",
    "null",
    "[1,2]",
    "[1,[2]]",
    "{a: 1}",
    "'é'",
    "'日本'",
    "'a,b=c'",
    "x" * 61,
    "x" * 62,
    f"'{'日' * 300}'",
    "'🙂'",
]


def test_the_folders_of_any_swept_values_are_valid_different_and_short(tmp_path):
    names = [folder_of(f"+some.key={value}") for value in ODD]
    for name in names:
        assert name.startswith("some.key=") and not set(name) & set("/\\\n\"'*?<>|: ") and len(name.encode()) < 100
        (tmp_path / name).mkdir()
    assert len({name.casefold() for name in names}) == len(ODD)
    assert names[1] == "some.key=a_b" and names[14] == "some.key=1"
    assert names[0].startswith("some.key=a_b-") and names[19].startswith("some.key=1_2-")


def test_the_folder_of_many_swept_values_stays_within_the_limit_of_file_systems():
    keys = [f"+some.{'k' * 20}{n}={'v' * 20}" for n in range(9)]
    first, second = (folder_of(*keys[:-1], last) for last in (keys[-1], keys[-1] + "w"))
    assert first != second and max(len(first.encode()), len(second.encode())) <= 200


@pytest.mark.slow
def test_a_sweep_stops_at_its_first_failure_with_that_jobs_exit_status(project):
    done = train(project, "-m", "stage=good,seven,after")
    assert done.returncode == 7
    assert list(ran(project)) == ["tiny/good", "tiny/seven"]


@pytest.mark.slow
def test_jobs_of_a_sweep_see_the_same_config_folders_and_hydra_settings(project, tmp_path):
    (tmp_path / "mine/stage").mkdir(parents=True)
    (tmp_path / "mine/stage/own.yaml").write_text(STAGE.format(ends="good"))
    done = train(project, "-m", "--config-dir", str(tmp_path / "mine"), "stage=own", "seed=1,2", "hydra.job.name=other")
    assert done.returncode == 0, done.stderr
    assert [job["seed"] for job in ran(project).values()] == [1, 2]
    assert (project / "logs/tiny/own-sweep/seed=1/other.log").is_file()


@pytest.mark.slow
def test_the_stages_of_a_swept_pipeline_stay_apart(project):
    assert train(project, "stage=good", "seed=5", "+new.key=1").returncode == 0
    assert ran(project)["tiny/good"]["arguments"] == [
        "--config-name=train",
        "hydra.mode=RUN",
        "seed=5",
        "+new.key=1",
        "stage=next",
    ]
    assert train(project, "-m", "stage=good", "seed=1,2").returncode == 0
    arguments = ran(project)["tiny/good-sweep/seed=2"]["arguments"]
    assert train(project, *arguments).returncode == 0
    job = ran(project)["tiny/good-sweep/seed=2/next"]
    assert (job["seed"], job["reads"]) == (2, "logs/tiny/good-sweep/seed=2/sft/export")


@pytest.mark.parametrize(("choice", "none"), [("lora=false", True), ("data=3", False), ("trainer=1e3", False)])
def test_a_choice_that_is_a_boolean_or_a_number_lists_the_choices(choice, none):
    told = choices.misnamed_choice(["stage=sft", choice])
    assert told.startswith(f"{choice}: expected one of ") and told.endswith(", or null for none") == none


@pytest.mark.parametrize(
    "group", ["data", "model", "trainer", "tokenizer", "world", "paths", "stage", "judge", "hydra"]
)
def test_a_group_that_a_run_needs_cannot_be_null(group):
    for choice in (f"{group}=null", f"~{group}", f"~{group}=default"):
        assert choices.misnamed_choice([choice]).startswith(f"{choice}: expected one of ")


@pytest.mark.parametrize("key", ["run", "paths.logs", "paths.cache", "paths.folder", "paths.stage", "paths.export"])
def test_a_path_cannot_be_null_or_empty_not_even_in_a_sweep(key):
    for given in (f"{key}=null", f"++{key}=", f"{key}='a',null", f"{key}=''", f"{key}=???", f"~{key}"):
        told = choices.misnamed_choice(["-m", "stage=sft", given])
        assert told == f"{given}: expected a name. Leave the argument out to use the default"
    assert choices.misnamed_choice([f"{key}='a,null'", f"{key}=nullified"]) is None


@pytest.mark.parametrize("sweep", [[], ["-m", "seed=1,2"]])
def test_a_path_that_a_config_sets_to_null_is_rejected_before_a_folder_is_created(project, sweep):
    (project / "conf/stage/nowhere.yaml").write_text(
        STAGE.format(ends="good") + "run: null\npaths: {folder: '', cache: null}\n"
    )
    done = train(project, *sweep, "stage=nowhere")
    assert done.returncode == 1 and not list(project.glob("logs*"))
    assert done.stderr.splitlines() == [
        "run: expected a name, got null",
        "paths.cache: expected a name, got null",
        "paths.folder: expected a name, got ''",
    ]


def test_null_cannot_be_part_of_a_sweep():
    assert choices.misnamed_choice(["-m", "lora=null,default"]).endswith("run lora=null by itself")


@pytest.mark.parametrize("group", choices.OPTIONAL)
def test_null_for_an_optional_group_leaves_it_out(group):
    assert choices.misnamed_choice([f"{group}=null"]) is None
    arguments = choices.without_nulls(["stage=rm", f"{group}=null"])
    assert arguments == ["stage=rm", f"~{group}"]
    cfg = compose_config(arguments)
    check(cfg)
    assert group in ("debug", "experiment") or not cfg[group] or list(cfg[group]) == ["hparams"]


def test_other_arguments_are_not_misnamed_choices():
    assert (
        choices.misnamed_choice(
            ["-m", "stage=sft", "seed=3", "compile=true", "lora=default", "lora=null", "~callbacks.samples", "--help"]
        )
        is None
    )


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_a_folder_that_is_not_writable_is_one_line(project, sweep):
    (project / "file").write_text("")
    done = train(project, *sweep, "stage=good", "paths.logs=file/logs")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("(Not a directory). Choose another folder for the runs: paths.logs=<folder>")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(("number", "last"), [(errno.ENOSPC, "No space left on device"), (errno.EIO, None)])
def test_a_full_disk_is_one_line_and_another_disk_error_a_traceback(caplog, number, last):
    with pytest.raises(SystemExit) as stopped, exit_codes.exit_codes():
        raise OSError(number, os.strerror(number), "model.safetensors")
    assert stopped.value.code == 1
    assert ("Traceback" in caplog.text) == (last is None)
    assert last is None or caplog.messages == [f"OSError: [Errno {number}] {last}: 'model.safetensors'"]


def test_a_users_mistake_is_one_line_on_standard_error_and_in_the_log(project):
    done = train(project, "stage=mistaken")
    line = "ValueError: no reward model. Make it with: python train.py stage=rm\n"
    said = "stage mistaken of run tiny, in logs/tiny/mistaken\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, said, line)
    assert line in (project / "logs/tiny/mistaken/train.log").read_text()


@pytest.mark.parametrize(("stage", "full", "last"), [("mistaken", "1", "ValueError"), ("broken", "0", "IndexError")])
def test_a_bug_or_hydra_full_error_gives_the_traceback(project, stage, full, last):
    done = train(project, f"stage={stage}", HYDRA_FULL_ERROR=full)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and last in done.stderr and "dispatch.py" in done.stderr


def test_an_interrupted_job_exits_with_130(project):
    done = train(project, "stage=interrupted")
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")


def test_a_terminated_sweep_terminates_its_job(project):
    sweep = started(project, "train.py", "-m", "stage=long,after")
    note = project / "logs/tiny/long/ran.json"
    wait_for(note, sweep, project)
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait(timeout=300) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(json.loads(note.read_text())["pid"], 0)
    assert list(ran(project)) == ["tiny/long"]


@pytest.mark.slow
def test_a_second_process_in_a_folder_is_rejected_before_it_writes_and_another_folder_is_free(project):
    first = started(project, "train.py", "stage=long")
    wait_for(project / "logs/tiny/long/ran.json", first, project)
    config = project / "logs/tiny/long/.hydra/config.yaml"
    before = config.stat().st_mtime_ns
    second = train(project, "stage=long", "seed=5")
    assert second.returncode == 1 and second.stderr.count("\n") == 1
    assert second.stderr.startswith(f"logs/tiny/long is in use by process {first.pid} on ")
    assert config.stat().st_mtime_ns == before
    assert train(project, "stage=good").returncode == 0
    first.kill()
    first.wait()
    assert train(project, "stage=long", "stage.ends=good").returncode == 0


def test_an_interrupt_from_the_terminal_stops_the_sweep_after_its_job_has_stopped(project):
    sweep = started(project, "train.py", "-m", "stage=long,after", start_new_session=True)
    wait_for(project / "logs/tiny/long/ran.json", sweep, project)
    os.killpg(sweep.pid, signal.SIGINT)  # as a terminal does: to the whole group
    assert sweep.wait(timeout=300) == 130
    assert list(ran(project)) == ["tiny/long"]


def test_an_unknown_key_suggests_the_closest_one(project):
    shutil.copy(ROOT / "components/launch/schema.py", project / "components/launch")
    done = train(project, "stage=good", "paths.lgos=elsewhere")
    assert done.returncode == 1
    assert "Key 'lgos' is not in struct" in done.stderr
    assert done.stderr.endswith("Did you mean paths.logs?\npython train.py stage=good paths.logs=elsewhere\n")


def test_a_mistyped_value_fails_before_anything_is_built(tmp_path):
    done = train(ROOT, "stage=pretrain", "trainer.precision=fp12", "stage.optimizer.lr=fast", f"paths.logs={tmp_path}")
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first.startswith("ConfigError: ") and "stage.optimizer.lr: expected float, got 'fast'" in done.stderr
    assert "trainer.precision: expected one of" in done.stderr and "32-true" in done.stderr
    assert not list(tmp_path.glob("**/*.ckpt"))


LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric")


@pytest.fixture
def quiet():
    """Lightning's loggers as its import leaves them, then quiet_lightning; undone afterwards."""
    import lightning  # noqa: F401

    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.handlers = [logging.StreamHandler()]
    with warnings.catch_warnings():
        quiet_lightning()
        yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.level, logger.propagate = handlers, level, propagate


def test_lightning_logs_once_and_only_if_something_is_wrong(quiet, caplog):
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with caplog.at_level("INFO"):
        logger.info("💡 Tip: For seamless cloud uploads and versioning, try installing litmodels")
        logger.warning("the loss is odd")
    assert caplog.messages == ["the loss is odd"]
    assert not any(logging.getLogger(name).handlers for name in LOGGERS)


def test_a_known_deprecation_is_silent_and_no_other_is(quiet):
    warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated", FutureWarning, stacklevel=1)
    with pytest.raises(FutureWarning, match="something else"):
        warnings.warn("something else", FutureWarning, stacklevel=1)


@pytest.mark.parametrize(
    "given",
    ["paths.cache=s3://bucket/x", "paths.logs=hf://a/b", "artifacts.sft=gs://b/x", "data.path=https://x.y/z.jsonl"]
    + ["resume=s3://b/x.ckpt", "paths.cache=a::b", "run=a::b"],
)
def test_a_url_is_not_a_path_and_is_rejected_before_a_folder_is_created(given):
    config = compose_config(["stage=sft"])
    key, _, value = given.partition("=")
    OmegaConf.update(config, key, value)
    [told] = run_folder.unusable(config)
    assert told.startswith(f"{key}={value}: expected ") and ("chain" in told) == ("::" in value)


def test_a_hub_name_a_drive_and_a_file_with_two_colons_are_paths():
    assert (
        run_folder.unusable(compose_config(["stage=sft", "data.path=a/b:c@d", "artifacts.pretrain=owner/name"])) == []
    )
    assert run_folder.unusable(compose_config(["stage=sft", "data.path=a::b.jsonl", "paths.logs=C:/logs"])) == []


@pytest.mark.parametrize(("section", "key"), [("selection", "selection.metric"), ("artifacts", "artifacts.pretrain")])
def test_a_section_that_others_refer_to_cannot_be_null(section, key):
    with pytest.raises(ValueError, match=rf"{section}: expected settings, since others refer to {key}; got null"):
        compose_config(["stage=sft", f"{section}=null"])
