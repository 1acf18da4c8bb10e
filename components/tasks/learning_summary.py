"""Whether the stages of a pipeline learned something, if there is no report to say it."""

import os

from omegaconf import DictConfig

from components.artifacts.metadata import read_card
from components.system.disk import present


def show(cfg: DictConfig) -> None:
    """Prints which of a pipeline's stages have learned something, among those that made an artifact."""
    # rich is slow to import, and most runs end with their own report
    from components.evaluation.report import learning, output

    exports = {entry: os.path.join(cfg.paths.stage, entry, "export") for entry in cfg.stages}
    cards = {entry: read_card(export) for entry, export in exports.items() if present(export)}
    table = learning.learning_table({"learning": learning.learned(cards)})
    if table is not None:
        output.wide_console().print(output.rich_table(table))
