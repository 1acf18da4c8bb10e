"""What the folders of the served models say about how they were made: lineage, learning curves and report card.

Only text and numbers leave this file, and no folder's full path.
"""

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.artifacts.ancestry import Ancestor, ancestors
from components.evaluation.report import card, contents, outcome, output
from components.serving.served import Served

Object = dict[str, Any]
REPORT = "report"  # the stage's folder in a run
DAMAGED = (ValueError, LookupError, TypeError, AttributeError, OSError)  # what reading another program's file can raise


class Runs:
    """The runs that models were served from, by name; a folder that is no run's stands for itself."""

    def __init__(self, served: Sequence[Served]) -> None:
        self.models: dict[str, list[Served]] = {}
        for one in served:
            run = _run_of(one.folder)
            self.models.setdefault(run.name if run else one.name, []).append(one)
        self._reading = threading.Lock()  # event files take a while to read: one request at a time

    def listed(self) -> list[Object]:
        """Name and models of each run."""
        return [
            {"id": name, "object": "run", "models": [one.name for one in models]}
            for name, models in self.models.items()
        ]

    def described(self, name: str) -> Object:
        """A run's lineage, curves and report; notes: what is missing, and why. Raises KeyError for another name."""
        models = self.models[name]
        run = _run_of(models[0].folder)
        notes: list[str] = []
        with self._reading:
            found = _ancestors([one.folder for one in models] if run is None else run.glob("*/export"), notes)
            return {
                "id": name,
                "object": "run",
                "lineage": [_node(one) for one in found],
                "curves": _curves(run, found, notes),
                "report": _report(run, notes),
                "notes": notes,
            }


def _run_of(folder: Path) -> Path | None:
    """The run of <run>/<stage>/export; None for another folder."""
    whole = folder.resolve()
    return whole.parents[1] if whole.name == "export" and len(whole.parents) > 2 else None


def _ancestors(exports: Any, notes: list[str]) -> list[Ancestor]:
    try:
        found = ancestors(exports)
    except DAMAGED as error:
        notes.append(f"No lineage: {error}.")
        return []
    if not found:
        notes.append("No lineage: without a card.json, a folder does not say what its model was made from.")
    return found


def _node(one: Ancestor) -> Object:
    kind = "artifact" if one.folder else "source"
    return {"id": one.key, "title": one.title, "kind": kind, "facts": one.facts, "parents": one.parents}


def _curves(run: Path | None, found: Sequence[Ancestor], notes: list[str]) -> list[Object]:
    """The curves that the report shows, by stage: those in the lineage in its order, then unfinished ones."""
    from components.evaluation.report.curves import read_curves  # tensorboard is slow to import

    try:
        finished = [one.folder.parent for one in found if one.folder]
        stages = [file for file in [*finished, *sorted(run.iterdir())] if file.parent == run] if run else []
        curves = read_curves({stage.name: stage for stage in stages if stage.is_dir()})
    except DAMAGED as error:
        notes.append(f"No curves: what the run logged cannot be read ({error}).")
        return []
    if not curves:
        notes.append("No curves: there are no event files of TensorBoard and no csv/metrics.csv.")
    return [
        {
            "stage": stage,
            "metric": metric,
            "steps": curve.steps,
            "values": [value if math.isfinite(value) else None for value in curve.values],
        }
        for stage, metrics in curves.items()
        for metric, curve in metrics.items()
    ]


def _report(run: Path | None, notes: list[str]) -> Object | None:
    try:
        results = output.read(run / REPORT) if run else None
        if results is None:
            notes.append(f"No report card{f': python train.py stage=eval run={run.name} makes it' if run else ''}.")
            return None
        tables = [card.models_table(results), *(table for table, _ in contents.tables_of(results))]
        lines = [*outcome.summary(results), *card.base_lines(results), card.minutes_line(results)]
        return {
            "summary": [line for line in lines if line],
            "tables": [table._asdict() for table in tables],
            "made": contents.provenance(results),
        }
    except DAMAGED as error:
        notes.append(f"No report card: report.json is damaged, or another version's ({type(error).__name__}: {error}).")
        return None
