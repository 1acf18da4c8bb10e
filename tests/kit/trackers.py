"""Stand-ins for wandb and mlflow, of what the loggers call, so that their tests need neither package."""

import importlib.machinery
import sys
from types import ModuleType
from typing import Any, NamedTuple


class FakeRun:
    """A W&B run: `logged` has what came, without its step; `steps` the steps."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.config, self.logged, self.steps, self.finished = settings, self, {}, [], None

    def update(self, settings: dict[str, Any], allow_val_change: bool) -> None:
        self.kept = settings

    def define_metric(self, *_: Any, **__: Any) -> None: ...

    def log(self, values: dict[str, Any]) -> None:
        self.steps.append(values.pop("trainer/global_step"))
        self.logged.update(values)

    def finish(self, exit_code: int) -> None:
        self.finished = exit_code


class Table(NamedTuple):
    columns: list[str]
    data: list[list[Any]]
    dataframe: Any = None


class Histogram(NamedTuple):
    values: list[float]


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class Param(NamedTuple):
    key: str
    value: str


class FakeClient:
    """An MLflow client whose server is the class: runs by id, each with params, metrics and files."""

    runs: dict[str, dict[str, Any]] = {}

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def get_experiment_by_name(self, name: str) -> None: ...

    def create_experiment(self, name: str, artifact_location: str) -> str:
        self.place = artifact_location
        return "1"

    def create_run(self, experiment_id: str, tags: dict[str, str]) -> Any:
        name = str(len(self.runs))
        self.runs[name] = {"tags": tags, "params": {}, "metrics": [], "files": {}, "status": "RUNNING"}
        return self.get_run(name)

    def get_run(self, run_id: str) -> Any:
        run = ModuleType("run")
        run.info, run.data = ModuleType("info"), ModuleType("data")
        run.info.run_id, run.info.experiment_id, run.data.params = run_id, "1", self.runs[run_id]["params"]
        return run

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id]["status"] = status

    set_terminated = update_run

    def log_batch(self, run_id: str, params: list[Param] = (), metrics: list[Metric] = ()) -> None:
        self.runs[run_id]["params"].update(params)
        self.runs[run_id]["metrics"] += metrics

    def log_text(self, run_id: str, content: Any, file: str) -> None:
        self.runs[run_id]["files"][file] = content

    log_table = log_dict = log_text


def module(monkeypatch: Any, name: str, **contents: Any) -> None:
    made = ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    made.__dict__.update(contents)
    monkeypatch.setitem(sys.modules, name, made)


def pretend_wandb(monkeypatch: Any) -> list[FakeRun]:
    """The runs that will have been started."""
    runs: list[FakeRun] = []

    def init(**settings: Any) -> FakeRun:
        runs.append(FakeRun(**settings))
        return runs[-1]

    module(monkeypatch, "wandb", init=init, run=None, Table=Table, Histogram=Histogram)
    module(monkeypatch, "wandb.sdk")
    module(monkeypatch, "wandb.sdk.lib", RunDisabled=FakeRun)
    module(monkeypatch, "wandb.wandb_run", Run=FakeRun)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    return runs


def pretend_mlflow(monkeypatch: Any) -> dict[str, dict[str, Any]]:
    """The runs that will have been made."""
    monkeypatch.setattr(FakeClient, "runs", {})
    module(monkeypatch, "mlflow", set_tracking_uri=lambda uri: None)
    module(monkeypatch, "mlflow.tracking", MlflowClient=FakeClient, context=None)
    module(monkeypatch, "mlflow.tracking.context", resolve_tags=lambda tags: tags)
    module(monkeypatch, "mlflow.entities", Metric=Metric, Param=Param)
    module(monkeypatch, "mlflow.utils")
    module(monkeypatch, "mlflow.utils.mlflow_tags", MLFLOW_RUN_NAME="mlflow.runName")
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", True)
    return FakeClient.runs
