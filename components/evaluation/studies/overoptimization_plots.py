"""The picture of over-optimization: gold and proxy against √KL, a line per β of PPO and one for best-of-n."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from components.evaluation.measure.over_seeds import half_width, is_spread, number
from components.evaluation.report.plot_style import INK, QUIET, style
from components.evaluation.studies.overoptimization_curves import smoothed

FIRST, LAST = (0.85, 0.33, 0.10), (0.13, 0.36, 0.66)  # colors of the smallest and the largest β


def draw(result: Mapping[str, Any]) -> Figure:
    """A panel for gold and one for proxy. result: `overoptimization_curves.analyze` of one seed, or with spreads, whose
    means are shown."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, result, "gold", "True quality (gold) turns down …")
    _panel(right, result, "proxy", "… while the score (proxy) still rises")
    for axes in (left, right):
        axes.set_xlabel("√KL to the initial policy, √nats per response")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _panel(axes: Axes, result: Mapping[str, Any], name: str, title: str) -> None:
    style(axes, title)
    runs = list(result["runs"].values())
    for i, run in enumerate(runs):
        color = _between(i / max(len(runs) - 1, 1))
        curve = run["curve"]
        distance, values = _numbers(curve["sqrt_kl"]), smoothed(_numbers(curve[name]))
        axes.plot(distance, values, color=color, linewidth=1.8, label=f"PPO, β {number(run['beta']):g}")
        axes.plot(distance[-1], number(run["final"][name]), "s", color=color, markersize=5)
        if name == "gold" and number(run["turning"]["turned"]) > 0.5:
            _turning(axes, run["turning"], color)
    samples = result.get("best_of_n")
    if samples:
        distance, values = _numbers(samples["sqrt_kl"]), _numbers(samples[name])
        axes.plot(distance, values, "o--", color=INK, markersize=4, linewidth=1.3, label="best of n (analytic KL)")
        if name == "gold":
            axes.annotate(
                f"n = {number(samples['n'][-1]):.0f}",
                (distance[-1], values[-1]),
                (5, 4),
                textcoords="offset points",
                color=QUIET,
                fontsize=8,
            )
    if name == "gold":
        axes.plot([], [], "*", color=QUIET, markersize=12, linestyle="none", label="turning point")
        axes.plot([], [], "s", color=QUIET, markersize=5, linestyle="none", label="end of the run")
    axes.set_ylabel("gold score" if name == "gold" else "proxy, in standard deviations at the start", color=QUIET)


def _turning(axes: Axes, turning: Mapping[str, Any], color: tuple[float, ...]) -> None:
    """A star at the peak; over seeds, at the mean of their peaks, with both intervals as a cross."""
    x, y = number(turning["sqrt_kl"]), number(turning["gold"])
    reach = {"xerr": turning["sqrt_kl"], "yerr": turning["gold"]}
    half = {axis: half_width(value) for axis, value in reach.items() if is_spread(value)}
    axes.errorbar(
        x,
        y,
        half.get("yerr"),
        half.get("xerr"),
        fmt="*",
        color=color,
        markersize=13,
        markeredgecolor="white",
        elinewidth=1,
        zorder=5,
    )


def _numbers(values: Sequence[Any]) -> list[float]:
    return [number(value) for value in values]


def _between(share: float) -> tuple[float, ...]:
    return tuple((1 - share) * a + share * b for a, b in zip(FIRST, LAST, strict=True))
