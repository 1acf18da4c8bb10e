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
from components.planning.plan_report import short
from components.planning.scaling_law import Fit, Run
from components.system.disk import write_json

DATA, PAGE, PICTURE = "scaling_law.json", "scaling_law.md", "scaling_law.png"
Results = dict[str, Any]


def results_of(fit: Fit, runs: Mapping[str, Run], larger: Run | None, parameters: float, tokens: float) -> Results:
    """What is written: the law with its intervals, the runs that it was fitted to, and the prediction.

    larger: the run that is predicted, once it is there; parameters, tokens: its size.
    """
    loss, low, high = fit.predicted(parameters, tokens)
    predicted: Results = {"parameters": parameters, "tokens": tokens, "loss": loss, "interval": [low, high]}
    if larger is not None:
        predicted |= {"measured": larger.loss, "error": loss / larger.loss - 1}
    return {
        "law": fit.law._asdict(),
        "intervals": {name: list(fit.interval(name)) for name in Law._fields},
        "error": fit.error,
        "runs": {name: run._asdict() for name, run in runs.items()},
        "predicted": predicted,
    }


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
    note = (
        f"loss = E + A/N^alpha + B/D^beta, nats per token; N parameters, D tokens. The runs are {_size(results)} off."
    )
    made = [Run(**run) for run in results["runs"].values()]
    rows = [_row(run, law.loss(run.parameters, run.tokens)) for run in sorted(made)]
    predicted = results["predicted"]
    low, high = predicted["interval"]
    row = [short(predicted["parameters"]), short(predicted["tokens"]), "–", f"{predicted['loss']:.3f}", "–"]
    if "measured" in predicted:
        row[2], row[4] = f"{predicted['measured']:.3f}", _signed(predicted["error"])
    ahead = f"Last: predicted from the other runs, 90% interval {low:.3f} to {high:.3f}."
    return [
        Table("scaling law", ["", "value", "90% interval"], constants, note),
        Table("runs", ["parameters", "tokens", "loss", "by the law", "error"], [*rows, row], ahead),
    ]


def _row(run: Run, law: float) -> list[str]:
    return [short(run.parameters), short(run.tokens), f"{run.loss:.3f}", f"{law:.3f}", _signed(law / run.loss - 1)]


def _size(results: Results) -> str:
    return f"{100 * results['error']:.1f}%"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}%".replace("-", "−")


def draw(results: Results) -> Figure:
    """Loss against tokens: a line of the law and the runs for each size, and the predicted run with its interval."""
    law, predicted = Law(**results["law"]), results["predicted"]
    runs = [Run(**run) for run in results["runs"].values()]
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    style(axes, "Loss on held-out text")
    tokens = np.geomspace(min(run.tokens for run in runs) / 1.2, 1.2 * predicted["tokens"], 100)
    sizes = sorted({run.parameters for run in runs})
    for number, size in enumerate(sizes):
        color = OTHER[number % len(OTHER)]
        of_size = sorted(run for run in runs if run.parameters == size)
        axes.plot(tokens, [law.loss(size, one) for one in tokens], color=color, linewidth=1.2)
        label = f"{short(size)} parameters"
        axes.plot([r.tokens for r in of_size], [r.loss for r in of_size], "o", color=color, markersize=6, label=label)
    size = predicted["parameters"]
    axes.plot(tokens, [law.loss(size, one) for one in tokens], color=QUIET, linewidth=1.2, linestyle=(0, (4, 3)))
    low, high = predicted["interval"]
    around = [[predicted["loss"] - low], [high - predicted["loss"]]]
    label = f"{short(size)} parameters, predicted"
    axes.errorbar(
        predicted["tokens"], predicted["loss"], around, fmt="D", color=QUIET, capsize=4, markersize=6, label=label
    )
    if "measured" in predicted:
        axes.plot(predicted["tokens"], predicted["measured"], "*", color=INK, markersize=13, label="then measured")
    axes.set_xscale("log")
    axes.set_xlabel("training tokens")
    axes.set_ylabel("nats per token")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure
