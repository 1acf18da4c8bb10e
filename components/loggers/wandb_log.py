"""Weights & Biases: online, or in a local folder until `wandb sync` uploads it."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from components.loggers.recorder import WANDB_ID, Recorder, kept_id, require


class WandB(Recorder, WandbLogger):
    """A run in `project`, in the group `group`, with its files in `folder`/wandb. A resumed run continues it."""

    def __init__(self, folder: str, stage: str | None, project: str, name: str, group: str, offline: bool) -> None:
        require("wandb")
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._id_file = Path(folder, WANDB_ID)
        sync = f"wandb sync {shlex.quote(str(self._id_file.parent))}/offline-*"
        self._seen_at = sync if offline else f"Weights & Biases, project {project}"
        super().__init__(
            stage=stage, save_dir=folder, project=project, name=name, group=group, offline=offline, log_model=False
        )
        # Lightning always passes it, and W&B warns that it has no effect; holds for Lightning 2.6
        self._wandb_init.pop("anonymous", None)

    def location(self) -> str:
        return self._seen_at

    @property
    def experiment(self) -> Any:
        # holds for Lightning 2.6: the run, once there is one, and the arguments to start it with
        if self._experiment is None and not getattr(rank_zero_only, "rank", None):
            self._wandb_init["id"] = kept_id(self._id_file)
        return super().experiment

    def record_settings(self, settings: Mapping[str, int | float | str]) -> None:
        self.log_hyperparams(dict(settings))

    def record_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        columns = list(rows[0])
        self.log_table(name, columns, [[row.get(column) for column in columns] for row in rows], step=step)

    def record_text(self, name: str, text: str, step: int) -> None:
        self.record_table(name, [{"text": text}], step)

    def record_histogram(self, name: str, values: Tensor, step: int) -> None:
        import wandb

        self.log_metrics({name: wandb.Histogram(values.tolist())}, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the run, since the next one in this process would be written into it."""
        super().finalize(status)
        if self._experiment is not None:  # holds for Lightning 2.6
            self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment = None
