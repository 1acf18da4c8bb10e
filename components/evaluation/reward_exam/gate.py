"""The gate before RL: an examination's figures against limits, as verdicts, a table and the words of a refusal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from components.evaluation.report.card import number, percent, with_interval
from components.evaluation.reward_exam.probes import PROBES

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
LOW_ENDS = {"accuracy_low", "gold_accuracy_low"}
CHANCE = 0.5  # the accuracy of a model that cannot tell
SHARES = {name for name in FIGURES if name not in ("ece", "length_correlation")}


class Support(NamedTuple):
    """What a figure rests on: the share of so many pairs on so many prompts ranked correctly, its 95 % interval."""

    share: float
    low: float
    high: float
    pairs: int
    prompts: int

    @property
    def reach(self) -> float:
        """How far the interval reaches from the share, at its longer side."""
        return max(self.share - self.low, self.high - self.share)


class Verdict(NamedTuple):
    """One figure against one limit. got: None where the data cannot tell; verdict: passed, warning, failed or not
    measured; needed: about how many prompts would tell, 0 where there are enough."""

    name: str
    got: float | None
    at_least: bool
    limit: float
    verdict: str
    rests: Support | None = None
    needed: int = 0

    @property
    def key(self) -> str:
        return f"{'min' if self.at_least else 'max'}_{self.name}"

    @property
    def shortage(self) -> str:
        """What a figure rests on and what it needs; "" where that is enough, or nothing was measured at all."""
        if self.rests is None or not self.needed:
            return ""
        there = f"{_counted(self.rests.pairs, 'pair')} on {_counted(self.rests.prompts, 'prompt')}"
        return f"{there} are too few to tell, about {self.needed:,} prompts are needed"

    def __str__(self) -> str:
        bound = "at least" if self.at_least else "at most"
        told = f"{FIGURES[self.name]}: got {_shown(self.name, self.got)}, limit {bound} {_shown(self.name, self.limit)}"
        return f"{told}: {self.shortage}" if self.shortage else told


def support(examination: Mapping[str, Any]) -> dict[str, Support]:
    """What each figure of an examination rests on; figures that compare nothing with a share are left out."""
    ranking = examination["ranking"]
    shares = dict.fromkeys(("accuracy", "accuracy_low", "ece", "over_length", "length_correlation"), ranking)
    shares["gold_accuracy_low"] = examination.get("gold")
    shares["against_length"] = examination.get("length_choices")
    shares["length_matched"] = examination.get("categories", {}).get("length", {}).get("matched lengths")
    shares |= {f"probe_{name}": trial for name, trial in examination.get("probes", {}).items()}
    return {name: _support(one) for name, one in shares.items() if one is not None}


def _support(share: Mapping[str, Any]) -> Support:
    low, high = share["accuracy_ci"]
    return Support(share["accuracy"], low, high, share["pairs"], share.get("prompts", share["pairs"]))


def needed(name: str, at_least: bool, limit: float, rests: Support) -> int:
    """About how many prompts would settle on which side of its limit a figure lies; 0 where there are enough.

    An interval that lies wholly on one side of a limit on its share settles it. Otherwise the interval must be narrow:
    its longer side at most half of what is left up to a perfect share, counted from the limit where the figure is the
    low end of an interval, else from chance. A model halfway up then passes, and a perfect one never fails because its
    pairs are few. The width falls with the root of the number of prompts.
    """
    is_share = name in LOW_ENDS or name in ("accuracy", "length_matched") or name.startswith("probe_")
    if is_share and (
        rests.low >= limit or rests.high < limit if at_least else rests.high <= limit or rests.low > limit
    ):
        return 0
    room = (1 - (limit if name in LOW_ENDS else CHANCE)) / 2
    if room <= 0 or rests.reach <= room:  # no interval's low end reaches 1, however many there are
        return 0
    return math.ceil(rests.prompts * (rests.reach / room) ** 2)


def verdicts(
    figures: Mapping[str, float | None], refuse: Limits, warn: Limits, rests: Mapping[str, Support] | None = None
) -> list[Verdict]:
    """Each figure that has a limit, judged: failed beyond a limit of `refuse`, a warning beyond one of `warn`, not
    measured where it rests on too little (rests: see `support`; a figure that is not there rests on enough).

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
            judged = _judged(name, figures.get(name), side == "min", limit, beyond, (rests or {}).get(name))
            if judged.verdict != PASSED or (name, judged.at_least) not in found:
                found[name, judged.at_least] = judged
    order = list(FIGURES)
    return sorted(found.values(), key=lambda one: (order.index(one.name), one.at_least))


def _judged(name: str, got: float | None, at_least: bool, limit: float, beyond: str, rests: Support | None) -> Verdict:
    if got is None:
        return Verdict(name, got, at_least, limit, UNKNOWN)
    wanted = needed(name, at_least, limit, rests) if rests else 0
    within = got >= limit if at_least else got <= limit
    return Verdict(name, got, at_least, limit, UNKNOWN if wanted else PASSED if within else beyond, rests, wanted)


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
    caption = f"{ranking['pairs']:,} held-out pairs on {ranking['prompts']:,} prompts. [95 % interval over prompts]"
    short = max(found, key=lambda one: one.needed, default=None)
    if short and short.shortage:
        caption += f"\nnot measured: {short.shortage}"
    table = Table(box=SIMPLE_HEAD, show_edge=False, caption_justify="left", caption_style="dim", caption=caption)
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


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _shown(name: str, value: float | None) -> str:
    """A share in percent, to the tenth: a figure just beyond its limit must not look like the limit."""
    if value is None or name not in SHARES:
        return number(value)
    return f"{100 * value:.1f}".removesuffix(".0").replace("-", "−") + " %"
