"""MLflow: runs in a local folder (a database and files next to it) or on a tracking server."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from components.loggers.recorder import MLFLOW_ID, Recorder, histogram, require


class MLflow(Recorder, MLFlowLogger):
    """A run in `experiment`. uri: a tracking server's; null: `folder`/mlflow.db, with files in `folder`/artifacts.

    MLflow has no histograms and no tables over time: tables and texts are files of the run, and histograms/<name> has
    the counts and edges of each step. The run's id is saved in `run_folder`, so a resumed run continues it.
    """

    def __init__(
        self, folder: str, run_folder: str, stage: str | None, experiment: str, name: str, uri: str | None
    ) -> None:
        require("mlflow")
        self._id_file = Path(run_folder, MLFLOW_ID)
        root = Path(folder).absolute()
        self._uri = uri or f"sqlite:///{root}/mlflow.db"
        super().__init__(
            stage=stage,
            experiment_name=experiment,
            run_name=name,
            tracking_uri=self._uri,
            artifact_location=None if uri else (root / "artifacts").as_uri(),
        )
        root.mkdir(parents=True, exist_ok=True)
        self._texts: dict[str, str] = {}  # by file

    def location(self) -> str:
        return f"mlflow ui --backend-store-uri {shlex.quote(self._uri)}"

    @property
    def experiment(self) -> Any:
        # holds for Lightning 2.6: whether a run was started or resumed
        if self._initialized or getattr(rank_zero_only, "rank", None):
            return super().experiment
        if self._id_file.exists():
            self._run_id = self._id_file.read_text(encoding="utf-8")  # holds for Lightning 2.6
        client = super().experiment
        self._id_file.parent.mkdir(parents=True, exist_ok=True)
        self._id_file.write_text(str(self._run_id), encoding="utf-8")
        return client

    def record_settings(self, settings: Mapping[str, int | float | str]) -> None:
        """A resumed run keeps the values that it began with: MLflow refuses to change them."""
        logged = self.experiment.get_run(self.run_id).data.params
        self.experiment.update_run(self.run_id, status="RUNNING")
        self.log_hyperparams({name: value for name, value in settings.items() if name not in logged})

    def record_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        columns = {"step": [step] * len(rows)} | {column: [row.get(column) for row in rows] for column in rows[0]}
        self.experiment.log_table(self.run_id, columns, f"{name}.json")

    def record_text(self, name: str, text: str, step: int) -> None:
        """One file per step, with all texts of that name and step."""
        file = f"{name}/{step}.md"
        self._texts[file] = "\n\n".join([*([self._texts[file]] if file in self._texts else []), text])
        self.experiment.log_text(self.run_id, self._texts[file], file)

    def record_histogram(self, name: str, values: Tensor, step: int) -> None:
        counts, edges = histogram(values)
        content = {"step": step, "counts": counts, "edges": edges}
        self.experiment.log_dict(self.run_id, content, f"histograms/{name}/{step}.json")
