"""The report card on disk and in the terminal."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from components import processes
from components.evaluation import card, tables
from components.evaluation.card import Results, Table
from components.evaluation.files import read_json, write_json

DATA, PAGE = "report.json", "report.md"
WIDTH = 100  # columns of the terminal's table
SAMPLES = 6  # prompts shown on the page
_ENTITIES = {ord(c): f"&#{ord(c)};" for c in "\\`*_[]<>&|#~"} | {ord("\r"): None}


def write(
    results: Results,
    folder: str | Path,
    *,
    curves: Mapping[str, str | Path] | None = None,
    console: Console | None = None,
) -> None:
    """Writes report.json, report.md and its pictures into `folder`, and prints the card.

    results: what evaluate_pipeline returns, with what the caller knows beside it, all optional: run, commit, hardware
    (strings), versions {name: version}, minutes {stage: minutes}. curves: {stage: folder of its event files}.
    All files are made in a temporary folder inside and renamed, report.json last; pictures of an earlier report that
    this one does not have are removed. Raises ValueError where a figure is not finite, and writes nothing.
    """
    from components.evaluation import plots  # matplotlib and tensorboard, which showing a report does without
    from components.evaluation.curves import read_curves

    folder = Path(folder)
    staging = folder / f".writing-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        write_json(staging / DATA, results)  # first: it refuses what is not finite
        pictures = plots.draw(results, read_curves(curves or {}), staging)
        (staging / PAGE).write_text(page(results, pictures), encoding="utf-8")
        for name in (*pictures, PAGE, DATA):
            os.replace(staging / name, folder / name)
        for name in set(plots.PICTURES) - set(pictures):
            (folder / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    show(results, folder, console or wide_console())


def read(folder: str | Path) -> Results | None:
    """The results that lie in a report's folder; None where there are none."""
    return read_json(Path(folder) / DATA)


def show(results: Results, folder: Path, console: Console) -> None:
    """Prints the card, where the report lies and how to talk to the best model."""
    for table in (fitting_models_table(results, console), tables.reward_table(results)):
        if table is not None:
            console.print()
            console.print(rich_table(table))
    console.print()
    notes = [*card.base_lines(results), card.crowd_line(results), *tables.sampling_lines(results)]
    for line in filter(None, [*notes, card.minutes_line(results)]):
        console.print(line, style="dim", markup=False, highlight=False)
    best = card.best(results)
    talk = f"{processes.gradus()} chat {folder.parent / ('pretrain' if best == 'base' else best)}"
    for what, where in (("report", folder / PAGE), ("figures", folder / DATA), ("talk to it", talk)):
        console.print(f"{what:<11}{where}", markup=False, highlight=False, soft_wrap=True)


def fitting_models_table(results: Results, console: Console) -> Table:
    """The models side by side if the console is wide enough, else one below another with fewer figures."""
    boundless = console.options.update(max_width=1000)
    table = card.models_table(results)
    columns = len(card.SHORT_COLUMNS)
    while console.measure(rich_table(table), options=boundless).maximum > console.width and columns:
        table = card.short_models_table(results, columns)
        columns -= 1
    return table


def wide_console() -> Console:
    """The terminal, at most WIDTH columns of it; WIDTH where the output goes to a file or a pipe."""
    terminal = Console()
    return Console(width=min(WIDTH, terminal.width) if terminal.is_terminal else WIDTH)


def page(results: Results, pictures: Mapping[str, str]) -> str:
    """The report as Markdown; pictures: {file name: caption}."""
    run = results.get("run")
    parts = [f"# Report card: {run}" if run else "# Report card", card.headline(results)]
    parts += [markdown(card.models_table(results)), *card.base_lines(results), card.crowd_line(results)]
    parts += [_picture(pictures, "quality.png")]
    sections = (
        (tables.best_of_n_table, "best_of_n.png"),
        (tables.majority_table, "majority.png"),
        (tables.choice_table, "choice.png"),
        (tables.reward_table, "reward_model.png"),
        (tables.budget_table, ""),
    )
    for table_of, picture in sections:
        table = table_of(results)
        if table is not None:
            parts += [markdown(table), _picture(pictures, picture)]
    if "curves.png" in pictures:
        parts += ["## Learning curves", _picture(pictures, "curves.png")]
    if results.get("minutes"):
        parts += ["## Minutes per stage", card.minutes_line(results), _picture(pictures, "minutes.png")]
    parts += ["## What they say", _answers(results), "## Made with", _provenance(results)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _answers(results: Results) -> str:
    """A table of prompts and what every model answers: the likeliest answer, then one drawn at temperature 1."""
    models = card.answering(results)
    lines = [["prompt", *models], ["---"] * (len(models) + 1)]
    prompts = next(iter(models.values()))["samples"][:SAMPLES]
    for place, prompt in enumerate(prompts):
        for kind in ("greedy", "sampled"):
            wanted = f" ({_literal(prompt['reference'])})" if prompt["reference"] else ""
            first = f"{_literal(prompt['prompt'])}{wanted}" if kind == "greedy" else ""
            lines.append([first, *(_answer(figures["samples"][place], kind) for figures in models.values())])
    note = "For each prompt the likeliest answer, then one drawn at temperature 1. … marks an answer that did not end."
    if "greedy_gold" in prompts[0]:
        note += " In brackets the gold score; behind the prompt the true value."
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{note}"


def _answer(sample: Results, kind: str) -> str:
    text = _literal(sample[kind]) + ("" if sample[f"{kind}_finished"] else " …")
    gold = sample.get(f"{kind}_gold")
    return text if gold is None else f"{text} ({card.number(gold)})"


def _provenance(results: Results) -> str:
    known = [key for key in ("commit", "seed", "hardware") if results.get(key) is not None]
    lines = [f"- {key}: {_literal(results[key])}" for key in known]
    versions = results.get("versions") or {}
    if versions:
        lines.append("- versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    return "\n".join(lines)


def _picture(pictures: Mapping[str, str], name: str) -> str:
    return f"![{pictures[name]}]({name})" if name in pictures else ""


def markdown(table: Table) -> str:
    """A table as a section of a Markdown page."""
    lines = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)], *table.rows]
    body = "\n".join(f"| {' | '.join(line)} |".replace("|   ", "| &emsp;") for line in lines)
    return f"## {table.title}\n\n{body}\n\n{table.note}"


def rich_table(table: Table) -> RichTable:
    """A table for the terminal."""
    made = RichTable(box=SIMPLE_HEAD, show_edge=False, caption=table.note, caption_justify="left", caption_style="dim")
    for place, column in enumerate([table.title, *table.columns[1:]]):
        made.add_column(column, justify="right" if place else "left", no_wrap=not place)
    for row in table.rows:
        made.add_row(*(cell.replace("[", "\\[") for cell in row))
    return made


def _literal(text: object) -> str:
    """Text that Markdown shows exactly as it is, on one line of a table."""
    return str(text).translate(_ENTITIES).replace("\n", "<br>")
