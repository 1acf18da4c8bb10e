"""The interface between a run and its loggers: each has the run's samples, histograms, texts and settings."""

import csv
import json
import logging
import re
import sys

import pytest
import torch
import yaml
from lightning.pytorch.loggers.logger import DummyLogger

from components.callbacks.dashboard import Dashboard
from components.callbacks.diagnosis import Diagnosis
from components.callbacks.header import Header
from components.callbacks.hparams import HyperParameters
from components.callbacks.sample_table import SampleTable
from components.data.data_contract import DataContract
from components.evaluation.report.curves import read_curves
from components.launch.composing import compose_config
from components.launch.schema import ConfigError, check
from components.loggers.csv_log import CSV
from components.loggers.mlflow_log import MLflow
from components.loggers.recorder import Recorder, forget, histogram, named, original
from components.loggers.tensorboard_log import TensorBoard
from components.loggers.wandb_log import WandB
from components.system import installing
from tests.kit.tiny_run import Stream, Tiny, Validated, trainer
from tests.kit.trackers import Histogram, Table, pretend_mlflow, pretend_wandb

SETTINGS = {"model": "tiny", "stage.optimizer.lr": 0.01}
TEXT = "**badly calibrated**: the calibration error is 0.90, healthy is below 0.1."
ROW = {"prompt": "Who?", "response": 'a, "b"\nc', "score": 0.5}


class Talking(Validated):
    """Two optimizer steps, with all that a stage can log."""

    charts = ()

    def sample_texts(self):
        return [ROW]

    def histograms(self):
        return {"val/scores": torch.tensor([0.0, 1.0, 2.0, float("nan"), 3.0])}

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log_dict({"val/ece": 0.9, "val/score_length_correlation": 0.9})


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL)  # of the diagnosis


def fit(*loggers, steps: int = 2, **settings):
    """A run with the callbacks that pass something to loggers."""
    callbacks = [SampleTable(every_n_steps=2), HyperParameters("val/loss", dict(SETTINGS)), Diagnosis(), Dashboard()]
    settings = {"val_check_interval": 2, "limit_val_batches": 2, **settings}
    run = trainer(callbacks, logger=list(loggers), max_steps=steps, **settings)
    run.fit(Talking(), Stream(), Stream())
    return run


class Listening(Recorder, DummyLogger):
    def __init__(self) -> None:
        super().__init__(stage="components.stages.sft.SFT")
        self.heard: dict[str, object] = {}

    def log_metrics(self, metrics, step=None):
        self.heard |= {self.named(name): value for name, value in metrics.items()}

    def record_settings(self, settings):
        self.heard["settings"] = settings

    def record_table(self, name, rows, step):
        self.heard[name] = (rows, step)

    def record_text(self, name, text, step):
        self.heard.setdefault(name, []).append(text)

    def record_histogram(self, name, values, step):
        self.heard[name] = (values.tolist(), step)


def test_callbacks_pass_everything_to_any_recorder():
    logger = Listening()
    run = fit(logger)
    assert logger.heard["settings"] == SETTINGS
    assert logger.heard["samples"] == ([ROW], 2)
    assert logger.heard["val/scores"] == ([0.0, 1.0, 2.0, 3.0], 2)
    assert logger.heard["diagnosis"][0].startswith(TEXT)
    assert logger.heard["Artifact/SFT val/loss"] == pytest.approx(float(run.callback_metrics["val/loss"]))


def test_a_logger_for_scalars_only_is_left_alone():
    fit(DummyLogger())


def test_other_processes_pass_nothing_to_loggers(monkeypatch):
    logger = Listening()
    monkeypatch.setattr("lightning.Trainer.is_global_zero", property(lambda trainer: False))
    fit(logger)
    assert not logger.heard.keys() & {"settings", "samples", "val/scores", "diagnosis", "Artifact/SFT val/loss"}


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("val/loss", "SFT val/loss"),
        ("rollout/kl", "SFT rollout/kl"),
        ("samples", "SFT samples"),
        ("artifact/val/loss", "Artifact/SFT val/loss"),
        ("epoch", "_/epoch"),
        ("budget/flops", "_/budget/flops"),
        ("healthy/val/ece/low", "_/healthy/SFT val/ece/low"),
    ],
)
def test_a_metric_is_called_by_its_stage_and_bookkeeping_comes_last(name, tag):
    assert named(name, "SFT") == tag
    assert original(tag) == (name if tag.startswith("SFT ") else tag)


def test_names_of_earlier_runs_are_still_read():
    assert original("val/loss") == "val/loss"


def test_groups_come_in_the_order_of_their_characters():
    """As TensorBoard 2.21 sorts them: what was made, the stages, then bookkeeping."""
    names = ["epoch", "budget/flops", "train/loss", "val/loss", "healthy/val/ece/low", "artifact/val/loss"]
    tags = sorted(named(name, stage) for name in names for stage in ("Pretrain", "RewardModel", "DPO"))
    groups = list(dict.fromkeys(tag.split("/")[0] for tag in tags))
    stages = [f"{stage} {kind}" for stage in ("DPO", "Pretrain", "RewardModel") for kind in ("train", "val")]
    assert groups == ["Artifact", *stages, "_"]


def test_equal_values_have_a_histogram_too():
    counts, edges = histogram(torch.tensor([2.0, 2.0]))
    assert sum(counts) == 2 and counts[15] == 2
    assert (edges[0], edges[-1]) == (1.5, 2.5)


def rows_of(file):
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_csv_has_metrics_samples_texts_histograms_and_settings(tmp_path):
    run = fit(CSV(str(tmp_path), "components.stages.sft.SFT"))
    folder = tmp_path / "csv"
    metrics = rows_of(folder / "metrics.csv")
    [loss] = [float(row["value"]) for row in metrics if row["name"] == "Artifact/SFT val/loss"]
    assert loss == pytest.approx(float(run.callback_metrics["val/loss"]))
    assert [row["step"] for row in metrics if row["name"] == "SFT train/loss"] == ["0", "1"]
    assert json.loads((folder / "samples.jsonl").read_text()) == {"step": 2, **ROW}
    bins = rows_of(folder / "histograms.csv")
    assert {row["name"] for row in bins} == {"SFT val/scores"}
    assert sum(float(row["count"]) for row in bins) == 4
    assert (float(bins[0]["low"]), float(bins[-1]["high"])) == (0, 3)
    texts = rows_of(folder / "texts.csv")
    assert texts[0]["value"].startswith(TEXT) and texts[0]["name"] == "SFT diagnosis"
    assert yaml.safe_load((folder / "hparams.yaml").read_text()) == SETTINGS


def test_the_curves_of_the_report_are_read_from_csv_where_there_are_no_event_files(tmp_path):
    fit(CSV(str(tmp_path), "components.stages.sft.SFT"), steps=4)
    curves = read_curves({"sft": tmp_path})["sft"]
    assert set(curves) == {"train/loss", "val/loss"}
    assert curves["train/loss"].steps == [0, 1, 2, 3]
    assert len(curves["val/loss"].values) == 2


def test_a_resumed_run_appends_to_its_files_and_one_that_starts_from_scratch_does_not(tmp_path):
    fit(CSV(str(tmp_path), "SFT"))
    count = len(rows_of(tmp_path / "csv/metrics.csv"))
    fit(CSV(str(tmp_path), "SFT"))
    assert len(rows_of(tmp_path / "csv/metrics.csv")) == 2 * count
    assert len((tmp_path / "csv/samples.jsonl").read_text().splitlines()) == 2
    forget(tmp_path)
    assert not list((tmp_path / "csv").iterdir())


WANDB = {"stage": "SFT", "project": "gradus", "name": "tiny/sft", "group": "tiny", "offline": True}


def test_wandb_gets_metrics_samples_texts_histograms_and_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    runs = pretend_wandb(monkeypatch)
    fit(WandB(str(tmp_path), **WANDB))
    [run] = runs
    assert run.kept == SETTINGS
    assert run.logged["SFT samples"] == Table(list(ROW), [list(ROW.values())])
    assert run.logged["SFT val/scores"] == Histogram([0.0, 1.0, 2.0, 3.0])
    assert "SFT diagnosis" in run.logged
    assert {"SFT train/loss", "SFT val/loss", "Artifact/SFT val/loss"} <= run.logged.keys()
    assert run.settings["project"] == "gradus" and run.settings["group"] == "tiny"
    assert run.finished == 0


def test_a_resumed_run_continues_its_wandb_run_and_one_that_starts_from_scratch_does_not(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    runs = pretend_wandb(monkeypatch)
    for _ in range(2):
        fit(WandB(str(tmp_path), **WANDB))
    forget(tmp_path)
    fit(WandB(str(tmp_path), **WANDB))
    first, resumed, restarted = (run.settings["id"] for run in runs)
    assert first == resumed != restarted


def mlflow_logger(folder) -> MLflow:
    return MLflow(str(folder / "mlflow"), str(folder / "sft"), "SFT", experiment="tiny", name="tiny/sft", uri=None)


def test_mlflow_gets_metrics_samples_texts_histograms_and_settings(tmp_path, monkeypatch):
    runs = pretend_mlflow(monkeypatch)
    fit(mlflow_logger(tmp_path))
    [run] = runs.values()
    assert run["params"] == {"model": "tiny", "stage.optimizer.lr": "0.01"}
    assert {"SFT train/loss", "SFT val/loss", "Artifact/SFT val/loss"} <= {metric.key for metric in run["metrics"]}
    assert run["files"]["samples.json"] == {"step": [2]} | {column: [value] for column, value in ROW.items()}
    assert sum(run["files"]["histograms/val/scores/2.json"]["counts"]) == 4
    assert run["files"]["diagnosis/1.md"].startswith(TEXT)
    assert "**learned length**" in run["files"]["diagnosis/1.md"]  # both findings of the step
    assert run["tags"] == {"mlflow.runName": "tiny/sft"} and run["status"] == "FINISHED"


def test_a_resumed_run_continues_its_mlflow_run_and_one_that_starts_from_scratch_does_not(tmp_path, monkeypatch):
    runs = pretend_mlflow(monkeypatch)
    for _ in range(2):
        fit(mlflow_logger(tmp_path))
    assert len(runs) == 1
    forget(tmp_path / "sft")
    fit(mlflow_logger(tmp_path))
    assert len(runs) == 2


def test_every_logger_says_where_its_curves_can_be_seen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pretend_wandb(monkeypatch)
    pretend_mlflow(monkeypatch)
    mlflow = MLflow("logs/mlflow", "logs/tiny/sft", "SFT", experiment="tiny", name="x", uri=None)
    online = WandB("logs/tiny/sft", **WANDB | {"offline": False})
    watched = {
        TensorBoard("logs/tiny/sft", "SFT", logs="my logs"): "tensorboard --logdir 'my logs'",
        CSV("logs/tiny/sft", "SFT"): "logs/tiny/sft/csv",
        WandB("logs/tiny/sft", **WANDB): "wandb sync logs/tiny/sft/wandb/offline-*",
        online: "Weights & Biases, project gradus",
        mlflow: f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/logs/mlflow/mlflow.db",
    }
    assert [logger.location() for logger in watched] == list(watched.values())


def test_the_header_says_where_the_curves_of_every_logger_can_be_seen(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Few(DataContract):
        format, train_examples, val_examples, batch_size = "chat", [1], [], 2

        def train_dataloader(self):
            return Stream()

    loggers = [TensorBoard("logs/tiny/sft", "SFT", logs="logs"), CSV("logs/tiny/sft", "SFT")]
    trainer([Header("tiny")], logger=loggers, max_steps=1).fit(Tiny(), datamodule=Few())
    assert "curves  tensorboard --logdir logs\n        logs/tiny/sft/csv\n" in capsys.readouterr().out


def test_the_header_is_printed_once_and_before_the_validation_before_the_first_step(capsys):
    class Few(DataContract):
        format, train_examples, val_examples, batch_size = "chat", [1], [1], 2

        def train_dataloader(self):
            return Stream()

        def val_dataloader(self):
            return Stream()

    class Validated(Tiny):
        def validation_step(self, batch, batch_idx):
            print("validating")

    checked = {"num_sanity_val_steps": 1, "limit_val_batches": 1}
    trainer([Header("tiny")], logger=False, max_steps=1, **checked).fit(Validated(), datamodule=Few())
    printed = capsys.readouterr().out
    assert printed.count("model   tiny") == 1 and printed.index("model   tiny") < printed.index("validating")


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_is_one_message_with_its_command_before_anything_is_read(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    command = f"needs the package {package}, .*: {re.escape(installing.command(package))}"
    with pytest.raises(ConfigError, match=f"logger.{package} {command}") as told:
        check(compose_config(["stage=rm", f"logger={package}"]))
    assert len(str(told.value).splitlines()) == 1
    with pytest.raises(ValueError, match=command):
        WandB(str(tmp_path), **WANDB) if package == "wandb" else mlflow_logger(tmp_path)


def test_loggers_are_chosen_by_name_alone_together_or_none():
    choose = lambda choice: list(compose_config(["stage=rm", f"logger={choice}"]).logger)
    assert choose("csv") == ["csv"]
    assert choose("[tensorboard,csv]") == ["tensorboard", "csv"]
    assert choose("none") == []


@pytest.mark.slow  # a service is started
def test_real_wandb_keeps_the_run_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="pip install -c constraints.txt -e '.[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    fit(WandB(str(tmp_path), **WANDB))
    wandb.teardown()  # waits for what is still to be written
    [folder] = tmp_path.glob("wandb/offline-run-*")
    [written] = folder.glob("*.wandb")
    [table] = (json.loads(file.read_text()) for file in folder.glob("files/media/table/SFT samples*"))
    assert table == {"columns": list(ROW), "data": [list(ROW.values())]}
    raw = written.read_bytes()
    for name in ("SFT train/loss", "Artifact/SFT val/loss", "SFT val/scores", "histogram", "stage.optimizer.lr"):
        assert name.encode() in raw, name


@pytest.mark.slow  # a data base is made
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_real_mlflow_keeps_the_run_in_a_local_folder(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="pip install -c constraints.txt -e '.[mlflow]'")
    run = fit(mlflow_logger(tmp_path))
    fit(mlflow_logger(tmp_path))  # resumed
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    [found] = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert found.info.status == "FINISHED" and found.info.run_name == "tiny/sft"
    assert found.data.params == {"model": "tiny", "stage.optimizer.lr": "0.01"}
    result = found.data.metrics["Artifact/SFT val/loss"]
    assert result == pytest.approx(float(run.callback_metrics["val/loss"]))
    assert [m.step for m in client.get_metric_history(found.info.run_id, "SFT train/loss")] == [0, 1, 0, 1]
    files = tmp_path / "mlflow/artifacts" / found.info.run_id / "artifacts"
    samples = json.loads((files / "samples.json").read_text())
    assert samples == {"columns": ["step", *ROW], "data": [[2, *ROW.values()]] * 2}
    assert sum(json.loads((files / "histograms/val/scores/2.json").read_text())["counts"]) == 4
    assert (files / "diagnosis/1.md").read_text().startswith(TEXT)
