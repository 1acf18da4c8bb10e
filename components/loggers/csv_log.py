"""Files for a spreadsheet or pandas: one row per value, so a resumed run only appends."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from components.loggers.recorder import METRICS, Recorder, histogram


class _Files(Logger):
    """A Lightning Logger that appends to files in a folder."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder, METRICS).parent

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Does nothing: settings are logged by record_settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.append(
            Path(METRICS).name, ("step", "name", "value"), [(step, name, float(v)) for name, v in metrics.items()]
        )

    def append(self, file: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([*([] if stream.tell() else [columns]), *rows])


class CSV(Recorder, _Files):
    """metrics.csv and texts.csv: step, name, value; histograms.csv: a row per bin, with the count between low and high;
    tables: <name>.jsonl; settings: hparams.yaml."""

    def __init__(self, folder: str, stage: str | None) -> None:
        super().__init__(stage=stage, folder=folder)

    def location(self) -> str:
        return str(self.folder)

    def record_settings(self, settings: Mapping[str, int | float | str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "hparams.yaml").write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")

    def record_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        lines = [json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in rows]
        with (self.folder / f"{name}.jsonl").open("a", encoding="utf-8") as stream:
            stream.write("".join(lines))

    def record_text(self, name: str, text: str, step: int) -> None:
        self.append("texts.csv", ("step", "name", "value"), [(step, self.named(name), text)])

    def record_histogram(self, name: str, values: Tensor, step: int) -> None:
        counts, edges = histogram(values)
        rows = [(step, self.named(name), *row) for row in zip(edges, edges[1:], counts, strict=False)]
        self.append("histograms.csv", ("step", "name", "low", "high", "count"), rows)
