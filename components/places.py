"""What Hydra answers with a traceback, seen to before: a choice that is no name, a folder that cannot be written to."""

import errno
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

CONF = Path(__file__).resolve().parents[1] / "conf"


def misnamed_choice(arguments: Sequence[str]) -> str | None:
    """What to tell of a choice from a config group that is a truth or a number, which Hydra refuses by a traceback."""
    for argument in arguments:
        group, _, value = argument.partition("=")
        choices = sorted(file.stem for file in (CONF / group).glob("*.yaml")) if group.isidentifier() else []
        if choices and re.fullmatch(r"(?i)true|false|[-+]?(\d[\d_.e+-]*|inf|nan)", value):
            return f"{argument}: expected one of {', '.join(choices)}, or null for none"
    return None


class Folder(Callback):
    """Makes the folder that Hydra is about to make, since where that fails Hydra shows a traceback."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        HydraConfig.instance().set_config(config)  # as Hydra does next: the folder's name asks for it
        self._make(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._make(config.hydra.sweep.dir)

    def _make(self, folder: str) -> None:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            print(
                f"{folder}: cannot be written to ({error.strerror}). Give the runs another place: paths.logs=<folder>",
                file=sys.stderr,
            )
            raise SystemExit(1) from None
