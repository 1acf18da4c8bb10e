"""The exact optimum on disk and in the terminal: a table, a page, a picture."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from components.evaluation.report.card import NONE, Table, number, percent, short
from components.evaluation.report.output import rich_table
from components.evaluation.report.page_blocks import block_as_markdown
from components.evaluation.report.plot_style import INK, QUIET, color_of, style
from components.system.disk import read_json_if_any, write_json

DATA, PAGE, PICTURE = "optimum.json", "optimum.md", "optimum.png"
COLUMNS = ("reached", "J = reward − β·KL", "reward", "KL, nats", "distance to π*", "minutes")
Results = dict[str, Any]


def write(results: Results, folder: str | Path, console: Console) -> None:
    """Writes optimum.png, optimum.md and, last, optimum.json into `folder`, and prints the table.

    results: what exact_optimum.measure returns; a method can also have its training time, `seconds`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure = draw(results)
    figure.savefig(folder / PICTURE, dpi=144, facecolor="white", metadata={"Software": None})
    picture = f"![share of the optimum, and reward against KL]({PICTURE})"
    text = f"# The exact optimum\n\n{block_as_markdown(table(results))}\n\n{picture}\n"
    (folder / PAGE).write_text(text, encoding="utf-8")
    write_json(folder / DATA, results)
    show(results, folder, console)


def read(folder: str | Path) -> Results | None:
    """The results in a folder; None if there are none."""
    return read_json_if_any(Path(folder) / DATA)


def show(results: Results, folder: Path, console: Console) -> None:
    """Prints the table and the paths of the files."""
    console.print()
    console.print(rich_table(table(results)))
    for what, name in (("page", PAGE), ("results", DATA)):
        console.print(f"{what:<11}{folder / name}", markup=False, highlight=False, soft_wrap=True)


def table(results: Results) -> Table:
    """A row per method, the best first, between the reference and the optimum."""
    methods = sorted(results["methods"].items(), key=lambda item: -item[1]["fraction_of_optimum"])
    rows = [["reference (sft)", *_cells(results["reference"])]]
    rows += [[label_of(name, results), *_cells(metrics)] for name, metrics in methods]
    rows += [["optimum π*", *_cells(results["optimum"])]]
    note = (
        f"Exact: all {results['responses']:,} responses to each of {results['prompts']} prompts, none sampled. "
        f"β {results['beta']:g}; reached: (J − J_ref) / (J* − J_ref); distance: total variation."
    )
    return Table("Methods", ["", *COLUMNS], rows, note)


def label_of(name: str, results: Results) -> str:
    """The name of a method in tables and pictures."""
    return f"best of {results['best_n']}" if name == "best_of_n" else name


def _cells(metrics: dict[str, float]) -> list[str]:
    seconds = metrics.get("seconds")
    keys = ("objective", "reward", "kl", "total_variation")
    shown = [number(metrics[key]) for key in keys]
    return [percent(metrics["fraction_of_optimum"]), *shown, NONE if seconds is None else short(seconds / 60)]


def draw(results: Results) -> Figure:
    """Left: the share of the optimum that each method reaches. Right: reward against KL, below the frontier."""
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.35])
    _shares(left, results)
    _frontier(right, results)
    return figure


def _shares(axes: Axes, results: Results) -> None:
    methods = sorted(results["methods"].items(), key=lambda item: item[1]["fraction_of_optimum"])
    shares = [metrics["fraction_of_optimum"] for _, metrics in methods]
    style(axes, "Share of the optimum reached")
    axes.grid(visible=False)
    colors = [_color(name, i) for i, (name, _) in enumerate(methods)]
    axes.barh([label_of(name, results) for name, _ in methods], shares, 0.62, color=colors)
    for i, share in enumerate(shares):  # to the right of the bar, even if it points to the left
        axes.text(max(share, 0.0) + 0.02, i, percent(share), va="center", color=INK, fontsize=9)
    axes.axvline(1, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(min(0.0, 1.15 * min(shares)), 1.18)
    axes.set_xticks([0, 0.5, 1], ["0%", "50%", "100%"])


def _frontier(axes: Axes, results: Results) -> None:
    """The highest reward at each KL, best-of-n, every method; a line of equal objective touches the frontier at π*."""
    style(axes, "Reward against KL")
    best, beta = results["optimum"], results["beta"]
    points = {**results["methods"], "reference": results["reference"]}
    most = 1.25 * max(metrics["kl"] for metrics in (best, *points.values()))
    for name, color, label in (
        ("frontier", INK, "the highest reward at each KL"),
        ("best_of_n_curve", QUIET, "best of n samples"),
    ):
        shown = [point for point in results[name] if point[0] <= most]
        axes.plot(*zip(*sorted(shown), strict=True), color=color, linewidth=1.4, label=label, zorder=1)
    ends = [0.0, most]
    axes.plot(
        ends,
        [best["objective"] + beta * kl for kl in ends],
        color=QUIET,
        linewidth=1,
        linestyle=(0, (4, 3)),
        label=f"objective of π*: r = J* + {beta:g}·KL",
        zorder=1,
    )
    axes.plot(best["kl"], best["reward"], "*", color=INK, markersize=19, label="optimum π*", zorder=2)
    for i, (name, metrics) in enumerate(points.items()):
        axes.plot(
            metrics["kl"],
            metrics["reward"],
            "o",
            color=_color(name, i),
            markersize=7.5,
            markeredgecolor="white",
            label=label_of(name, results),
            zorder=3,
        )
    axes.set_xlabel("KL to the reference, nats per response")
    axes.set_ylabel("mean reward")
    low = results["reference"]["reward"]
    axes.set_ylim(low - 0.15 * (best["reward"] - low), best["reward"] + 0.3 * (best["reward"] - low))
    axes.set_xlim(-0.03 * most, most)
    axes.figure.legend(frameon=False, fontsize=8, labelcolor=INK, loc="outside lower right", ncols=5)


def _color(name: str, index: int) -> str:
    return {"best_of_n": QUIET, "reference": color_of("sft", 0)}.get(name) or color_of(name, index)
