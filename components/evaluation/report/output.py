"""The report card on disk and in the terminal."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text as RichText

from components.artifacts.renamed import as_named_now
from components.evaluation.report import card, learning, outcome, tables
from components.evaluation.report.card import Results, Table
from components.system import processes
from components.system.disk import read_json_if_any, write_json

DATA, TEXT, PAGE = "report.json", "report.md", "report.html"
WIDTH = 100  # columns of the terminal's table


def write(
    results: Results,
    folder: str | Path,
    *,
    curves: Mapping[str, str | Path] | None = None,
    console: Console | None = None,
) -> None:
    """Writes report.json, report.html, report.md and its pictures into `folder`, and prints the card.

    results: what evaluate_pipeline returns plus, optionally, what the caller knows: run, commit, hardware (strings),
    versions {name: version}, minutes {stage: minutes}. curves: {stage: folder of its event files}.
    All files are written to a temporary folder inside `folder` and renamed, report.json last; pictures of an earlier
    report that this one does not have are removed. Raises ValueError if a metric is not finite, and writes nothing.
    """
    # matplotlib and tensorboard, which `show` does not need
    from components.evaluation.report import page_blocks, plots, report_page
    from components.evaluation.report.curves import read_curves

    folder = Path(folder)
    staging = folder / f".writing-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        write_json(staging / DATA, results)  # first: it raises on values that are not finite
        made = report_page.page(results, read_curves(curves or {}), staging)
        (staging / TEXT).write_text(page_blocks.markdown(made), encoding="utf-8")
        (staging / PAGE).write_text(page_blocks.html(made), encoding="utf-8")
        written = {file.name for file in staging.iterdir()}
        for name in sorted(written, key=lambda name: (name == DATA, name == PAGE)):
            os.replace(staging / name, folder / name)
        for name in plots.PICTURES:
            for file in (folder / f"{name}.png", *folder.glob(f"{name}-*.png")):
                if file.name not in written:
                    file.unlink(missing_ok=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    show(results, folder, console or wide_console())


def read(folder: str | Path) -> Results | None:
    """The results in a report's folder, with the current names of their inputs; None if there are none."""
    results = read_json_if_any(Path(folder) / DATA)
    if results and "inputs" in results:
        return results | {"inputs": as_named_now(results["inputs"])}
    return results


def is_whole(folder: str | Path) -> bool:
    """Whether the pages are there along with the results; if not, `write` recreates them from the results."""
    return all((Path(folder) / name).exists() for name in (TEXT, PAGE))


def show(results: Results, folder: Path, console: Console) -> None:
    """Prints the card, the path of the report and how to talk to the best model."""
    for table in (
        fitting_models_table(results, console),
        tables.against_table(results),
        tables.reward_table(results),
        tables.proxy_table(results),
        learning.learning_table(results),
    ):
        if table is not None:
            console.print()
            console.print(rich_table(table))
    console.print()
    notes = [*card.base_lines(results), card.crowd_line(results), *tables.sampling_lines(results)]
    for line in filter(None, [*notes, card.minutes_line(results)]):
        console.print(line, style="dim", markup=False, highlight=False)
    console.print()
    for line in outcome.summary(results):
        console.print(line, markup=False, highlight=False)
    console.print()
    best = card.best(results)
    talk = f"{processes.gradus()} chat {folder.parent / ('pretrain' if best == 'base' else best)}"
    for what, where in (("results", folder / DATA), ("talk to it", talk)):
        console.print(f"{what:<11}{where}", markup=False, highlight=False, soft_wrap=True)
    link = RichText.assemble(f"{'report':<11}", (str(folder / PAGE), f"link {(folder / PAGE).resolve().as_uri()}"))
    console.print(link, soft_wrap=True)


def fitting_models_table(results: Results, console: Console) -> Table:
    """The models side by side if the console is wide enough, else one per row with fewer metrics."""
    boundless = console.options.update(max_width=1000)
    table = card.models_table(results)
    columns = len(card.SHORT_COLUMNS)
    while console.measure(rich_table(table), options=boundless).maximum > console.width and columns:
        table = card.short_models_table(results, columns)
        columns -= 1
    return table


def wide_console() -> Console:
    """The terminal, at most WIDTH columns of it; WIDTH if the output goes to a file or a pipe."""
    terminal = Console()
    return Console(width=min(WIDTH, terminal.width) if terminal.is_terminal else WIDTH)


def rich_table(table: Table) -> RichTable:
    """A table for the terminal."""
    made = RichTable(box=SIMPLE_HEAD, show_edge=False, caption=table.note, caption_justify="left", caption_style="dim")
    for i, column in enumerate([table.title, *table.columns[1:]]):
        made.add_column(column, justify="right" if i else "left", no_wrap=not i)
    for row in table.rows:
        made.add_row(*(cell.replace("[", "\\[") for cell in row))
    return made
