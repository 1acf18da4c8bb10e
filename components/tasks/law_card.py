"""A fitted scaling law on disk and in the terminal: a table, a page, a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from components.evaluation.report.card import Table
from components.evaluation.report.output import rich_table
from components.evaluation.report.page_blocks import block_as_markdown
from components.evaluation.report.plot_style import INK, OTHER, QUIET, style
from components.planning.compute_optimal import Law
from components.planning.law_fit import Run
from components.planning.plan_report import short
from components.system.disk import write_json

DATA, PAGE, PICTURE = "scaling_law.json", "scaling_law.md", "scaling_law.png"
Results = dict[str, Any]


def write(results: Results, folder: Path, console: Console) -> None:
    """Writes scaling_law.png, scaling_law.md and, last, scaling_law.json into `folder`, and prints the table."""
    folder.mkdir(parents=True, exist_ok=True)
    draw(results).savefig(folder / PICTURE, dpi=144, facecolor="white", metadata={"Software": None})
    blocks = "\n\n".join(block_as_markdown(table) for table in tables(results))
    picture = f"![loss against tokens, by parameters, with the law]({PICTURE})"
    (folder / PAGE).write_text(f"# Scaling law\n\n{blocks}\n\n{picture}\n", encoding="utf-8")
    write_json(folder / DATA, results)
    show(results, folder, console)


def show(results: Results, folder: Path, console: Console) -> None:
    """Prints the tables and the paths of the files."""
    for table in tables(results):
        console.print()
        console.print(rich_table(table))
    for what, name in (("page", PAGE), ("results", DATA)):
        console.print(f"{what:<11}{folder / name}", markup=False, highlight=False, soft_wrap=True)


def tables(results: Results) -> list[Table]:
    """The law's constants, and every run with its loss by the law."""
    law = Law(**results["law"])
    constants = [
        [name, f"{getattr(law, name):.4g}", "{:.4g} to {:.4g}".format(*results["intervals"][name])]
        for name in Law._fields
    ]
    note = "loss = E + A/N^alpha + B/D^beta, nats per token; N parameters, embeddings among them, D tokens. "
    note += f"Root mean square error of the fitted runs: {100 * results['error']:.1f}%."
    runs = [_run(one) for one in results["runs"].values()]
    rows = [_row(run, law.loss(run.parameters, run.tokens)) for run in sorted(runs)]
    predicted, measured = results["predicted"], results.get("measured")
    size = [short(results["size"][name]) for name in ("parameters", "tokens")]
    row = [*size, "–", f"{predicted['loss']:.3f}", "–"]
    if measured:
        row[2], row[4] = f"{measured['loss']:.3f}", _signed(measured["error"])
    low, high = predicted["interval"]
    ahead = f"Last: predicted from the other runs before it was trained, 90% interval {low:.3f} to {high:.3f}."
    return [
        Table("scaling law", ["", "value", "90% interval"], constants, note),
        Table("runs", ["parameters", "tokens", "loss", "by the law", "error"], [*rows, row], ahead),
    ]


def _run(recorded: Mapping[str, Any]) -> Run:
    return Run(*(recorded[name] for name in Run._fields))


def _row(run: Run, law: float) -> list[str]:
    return [short(run.parameters), short(run.tokens), f"{run.loss:.3f}", f"{law:.3f}", _signed(law / run.loss - 1)]


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}%".replace("-", "−")


def draw(results: Results) -> Figure:
    """Loss against tokens: a line of the law and the runs for each size, and the predicted run with its interval."""
    law, predicted = Law(**results["law"]), results["predicted"]
    runs = [_run(one) for one in results["runs"].values()]
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    style(axes, "Loss on held-out text")
    larger = results["size"]
    tokens = np.geomspace(min(run.tokens for run in runs) / 1.2, 1.2 * larger["tokens"], 100)
    sizes = sorted({run.parameters for run in runs})
    for number, size in enumerate(sizes):
        color = OTHER[number % len(OTHER)]
        of_size = sorted(run for run in runs if run.parameters == size)
        axes.plot(tokens, [law.loss(size, one) for one in tokens], color=color, linewidth=1.2)
        label = f"{short(size)} parameters"
        axes.plot([r.tokens for r in of_size], [r.loss for r in of_size], "o", color=color, markersize=6, label=label)
    size, at = larger["parameters"], larger["tokens"]
    axes.plot(tokens, [law.loss(size, one) for one in tokens], color=QUIET, linewidth=1.2, linestyle=(0, (4, 3)))
    label = f"{short(size)} parameters, predicted, with 90% interval"
    axes.plot([at, at], predicted["interval"], color=QUIET, linewidth=1.6)
    axes.plot(at, predicted["loss"], "D", color=QUIET, markersize=6, label=label)
    if "measured" in results:
        axes.plot(at, results["measured"]["loss"], "*", color=INK, markersize=13, label="then measured")
    axes.set_xscale("log")
    axes.set_xlabel("training tokens")
    axes.set_ylabel("nats per token")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure
