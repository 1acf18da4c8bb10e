"""The gate before RL: an examination's figures against limits, as verdicts, a table and the words of a refusal."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from components.evaluation.card import number, percent, with_interval
from components.evaluation.probes import PROBES

Limits = Mapping[str, float | None]
REFUSED, WARNED, PASSED, UNKNOWN = "failed", "warning", "passed", "not measured"

FIGURES = {  # name → what it is
    "accuracy": "accuracy",
    "accuracy_low": "accuracy, low end",
    "gold_accuracy_low": "accuracy by the world's judge, low end",
    "ece": "calibration error (ECE)",
    "length_correlation": "|correlation of score and length|",
    "over_length": "accuracy beyond that of length alone",
    "against_length": "choices that length alone would not make",
    "length_matched": "accuracy at matched lengths",
    "worst_category_high": "accuracy in the worst category, high end",
    **{f"probe_{name}": f"best answer above: {what}" for name, what in PROBES.items()},
}
SHARES = {name for name in FIGURES if name not in ("ece", "length_correlation")}


class Verdict(NamedTuple):
    """One figure against one limit. got: None where the data cannot tell; verdict: passed, warning, failed or not
    measured."""

    name: str
    got: float | None
    at_least: bool
    limit: float
    verdict: str

    @property
    def key(self) -> str:
        return f"{'min' if self.at_least else 'max'}_{self.name}"

    def __str__(self) -> str:
        bound = "at least" if self.at_least else "at most"
        return f"{FIGURES[self.name]}: got {_shown(self.name, self.got)}, limit {bound} {_shown(self.name, self.limit)}"


def verdicts(figures: Mapping[str, float | None], refuse: Limits, warn: Limits) -> list[Verdict]:
    """Each figure that has a limit, judged: failed beyond a limit of `refuse`, a warning beyond one of `warn`.

    Limits are named min_<figure> or max_<figure>; a limit of null is none. A figure with both has one verdict, the
    worse. Raises ValueError for a limit on what is no figure.
    """
    found: dict[tuple[str, bool], Verdict] = {}
    for limits, beyond in ((warn, WARNED), (refuse, REFUSED)):
        for key, limit in limits.items():
            side, _, name = key.partition("_")
            if side not in ("min", "max") or name not in FIGURES:
                known = ", ".join(FIGURES)
                raise ValueError(f"gate: {key!r} is no limit; expected min_ or max_ before one of: {known}")
            if limit is None:
                continue
            got, at_least = figures.get(name), side == "min"
            verdict = UNKNOWN if got is None else PASSED if (got >= limit if at_least else got <= limit) else beyond
            if verdict != PASSED or (name, at_least) not in found:
                found[name, at_least] = Verdict(name, got, at_least, limit, verdict)
    order = list(FIGURES)
    return sorted(found.values(), key=lambda one: (order.index(one.name), one.at_least))


def refusal(path: str, examination: Mapping[str, Any], failed: Sequence[Verdict], commands: Mapping[str, str]) -> str:
    """Why a reward model is not trained against, and what can be done: {what: command}."""
    ranking = examination["ranking"]
    lines = [
        f"the reward model at {path} failed its examination "
        f"({ranking['pairs']:,} held-out pairs on {ranking['prompts']:,} prompts):"
    ]
    lines += [f"  {one}" for one in failed]
    return "\n".join([*lines, *(f"{what}: {command}" for what, command in commands.items())])


def show(examination: Mapping[str, Any], found: Sequence[Verdict], console: Console) -> None:
    """Prints an examination: figures with their limits, then the categories."""
    ranking = examination["ranking"]
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        caption_justify="left",
        caption_style="dim",
        caption=f"{ranking['pairs']:,} held-out pairs on {ranking['prompts']:,} prompts. [95 % interval over prompts]",
    )
    for place, title in enumerate(("Examination", "value", "limit", "")):
        table.add_column(title, justify="right" if place in (1, 2) else "left", no_wrap=True)
    for name, figure in examination["figures"].items():
        verdict = next((one for one in found if one.name == name and one.verdict != PASSED), None)
        verdict = verdict or next((one for one in found if one.name == name), None)
        cells = ["", ""]
        if verdict is not None:
            bound = "≥" if verdict.at_least else "≤"
            cells = [f"{bound} {_shown(name, verdict.limit)}", verdict.verdict]
        style = {REFUSED: "red", WARNED: "yellow"}.get(cells[1])
        table.add_row(FIGURES[name], _value(examination, name, figure), *cells, style=style)
    for grouping, shares in examination["categories"].items():
        table.add_section()
        for label, share in shares.items():
            value = with_interval(share["accuracy"], share["accuracy_ci"], percent).replace("[", "\\[")
            table.add_row(f"by {grouping}: {label}", value, f"{share['pairs']:,} pairs", "")
    console.print()
    console.print(table)


def _value(examination: Mapping[str, Any], name: str, figure: float | None) -> str:
    interval = examination["ranking"]["accuracy_ci"] if name == "accuracy" else None
    if name.startswith("probe_"):
        interval = examination["probes"][name.removeprefix("probe_")]["accuracy_ci"]
    shown = with_interval(figure, interval, percent) if interval else _shown(name, figure)
    return shown.replace("[", "\\[")


def _shown(name: str, value: float | None) -> str:
    """A share in percent, to the tenth: a figure just beyond its limit must not look like the limit."""
    if value is None or name not in SHARES:
        return number(value)
    return f"{100 * value:.1f}".removesuffix(".0").replace("-", "−") + " %"
