"""TensorBoard: curves, the TEXT, HISTOGRAMS, HPARAMS and CUSTOM SCALARS tabs."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from components.loggers.recorder import Recorder

# characters with a meaning in Markdown or HTML, written as entities so a cell shows the exact text
_ENTITIES = {ord(character): f"&#{ord(character)};" for character in "\\`*_[]<>&|#~"} | {ord("\r"): None}


class TensorBoard(Recorder, TensorBoardLogger):
    """Event files directly in the run's folder, with hparams.yaml next to them. logs: the folder of all runs."""

    def __init__(self, folder: str, stage: str | None, logs: str | None = None) -> None:
        super().__init__(stage=stage, save_dir=folder, name="", version="", default_hp_metric=False)
        self._logs = logs or folder
        self._ranges: dict[str, tuple[float, float]] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs the bounds of a healthy range along with its metric: TensorBoard draws a band only where all three have
        a point."""
        bounds = {}
        for name in metrics.keys() & self._ranges.keys():
            bounds[bound(name, "low")], bounds[bound(name, "high")] = self._ranges[name]
        super().log_metrics({**metrics, **bounds}, step)

    def location(self) -> str:
        return f"tensorboard --logdir {shlex.quote(self._logs)}"

    def record_settings(self, settings: Mapping[str, int | float | str]) -> None:
        """Fills the HPARAMS tab, without a list of metrics: TensorBoard uses one run's list for all runs, and would
        compare reward models by the metric of pretraining."""
        from torch.utils.tensorboard.summary import hparams

        self.hparams = dict(settings)
        Path(self.log_dir).mkdir(parents=True, exist_ok=True)
        save_hparams_to_yaml(str(Path(self.log_dir, self.NAME_HPARAMS_FILE)), self.hparams)
        _, started, _ = hparams(dict(settings), {})
        self.experiment._get_file_writer().add_summary(started)  # holds for torch 2.13

    def record_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        self.record_text(name, markdown_table(rows), step)

    def record_text(self, name: str, text: str, step: int) -> None:
        self.experiment.add_text(self.named(name), text, step)

    def record_histogram(self, name: str, values: Tensor, step: int) -> None:
        self.experiment.add_histogram(self.named(name), values, step)

    def record_charts(self, charts: Sequence[Any]) -> None:
        self._ranges = {chart.tags[0]: (chart.low, chart.high) for chart in charts if chart.low is not None}
        self.experiment.add_custom_scalars(self.layout(charts))

    def layout(self, charts: Sequence[Any]) -> dict[str, dict[str, list]]:
        """The argument of `SummaryWriter.add_custom_scalars`: a section of plain charts, then one of charts with bands.

        TensorBoard (2.21) shows a section's plain charts first, then those with bands in reverse order.
        """
        curves = {
            c.title: ["Multiline", [f"{re.escape(self.named(tag))}$" for tag in c.tags]]
            for c in charts
            if c.low is None
        }
        bands = {
            c.title: ["Margin", [self.named(n) for n in (c.tags[0], bound(c.tags[0], "low"), bound(c.tags[0], "high"))]]
            for c in reversed(charts)
            if c.low is not None
        }
        sections = {self.stage: curves, f"{self.stage}, healthy within the band": bands}
        return {title: section for title, section in sections.items() if section}


def bound(name: str, side: str) -> str:
    """The name of a bound of a metric's healthy range, such as healthy/rollout/kl/low."""
    return f"healthy/{name}/{side}"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with the first row's keys as columns; floats have three decimals, texts are shown literally."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text.translate(_ENTITIES).replace("\n", "<br>")
