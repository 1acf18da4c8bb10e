"""The table `artifacts` of a config: where each stage that makes an artifact leaves it.

Read from conf/stage, so that a new stage is its YAML and its module, and no list has to be edited.
"""

import re
from pathlib import Path

from hydra.core.config_store import ConfigStore

STAGES = Path(__file__).resolve().parents[2] / "conf/stage"
TRAINS = re.compile(r"^task: components\.tasks\.fit\.", re.M)


def stages() -> list[str]:
    """The stages that make an artifact, by name."""
    return sorted(file.stem for file in STAGES.glob("*.yaml") if TRAINS.search(file.read_text(encoding="utf-8")))


def register() -> None:
    """Makes the table known to Hydra as the config paths/artifacts."""
    table = {stage: f"${{paths.logs}}/${{from}}/{stage}/export" for stage in stages()}
    ConfigStore.instance().store(group="paths", name="artifacts", node={"artifacts": table}, package="_global_")
