"""The gate before RL: an examination's metrics against limits, as verdicts, a table and a refusal message."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from components.evaluation.report.card import number, percent, with_interval
from components.evaluation.reward_exam.probes import PROBES

Limits = Mapping[str, float | None]
REFUSED, WARNED, PASSED, UNKNOWN = "failed", "warning", "passed", "not measured"

METRICS = {  # name → description
    "accuracy": "accuracy",
    "accuracy_low": "accuracy, low end",
    "gold_accuracy_low": "accuracy by the world's judge, low end",
    "ece": "calibration error (ECE)",
    "length_correlation": "|score–length correlation|",
    "over_length": "accuracy beyond length alone",
    "against_length": "choices against length",
    "length_matched": "accuracy at matched lengths",
    "worst_category_high": "accuracy in the worst category, high end",
    **{f"probe_{name}": f"best answer above: {what}" for name, what in PROBES.items()},
}
MORE = "accuracy: train on more comparisons, or on more consistent ones."
LENGTHS = "length: balance the lengths of chosen and rejected answers, or a policy will go where length alone wins."
UNSEEN = (
    "best answer above …: no comparison has such answers, so the model guesses. Add comparisons that they lose; until "
    "then only the KL penalty (stage.beta) keeps a policy from them, so read its samples."
)
REMEDIES = {  # name → what to do about a value beyond its limit
    "accuracy": MORE,
    "accuracy_low": MORE,
    "gold_accuracy_low": "accuracy by the world's judge: is chosen the better answer? Labels may be reversed.",
    "ece": "calibration: scores are more certain than correct. Train for fewer epochs (trainer.max_epochs), lower "
    "stage.optimizer.lr, or set stage.label_smoothing.",
    **dict.fromkeys(("length_correlation", "over_length", "against_length", "length_matched"), LENGTHS),
    "worst_category_high": "worst category: add comparisons of that category, which the rows by category show.",
    **{f"probe_{name}": UNSEEN for name in PROBES},
}
LOW_ENDS = {"accuracy_low", "gold_accuracy_low"}
CHANCE = 0.5  # the accuracy of random choices
SHARES = {name for name in METRICS if name not in ("ece", "length_correlation")}


class Support(NamedTuple):
    """The evidence behind a metric: the share of pairs ranked correctly, its 95% interval, and the sample sizes."""

    share: float
    low: float
    high: float
    pairs: int
    prompts: int

    @property
    def reach(self) -> float:
        """The length of the longer side of the interval, from the share to its end."""
        return max(self.share - self.low, self.high - self.share)


class Verdict(NamedTuple):
    """One metric against one limit. got: None if the data cannot tell; verdict: passed, warning, failed or not
    measured; needed: about how many prompts would settle it, 0 if there are enough."""

    name: str
    got: float | None
    at_least: bool
    limit: float
    verdict: str
    support: Support | None = None
    needed: int = 0

    @property
    def key(self) -> str:
        """The name of the limit: min_<metric> or max_<metric>."""
        return f"{'min' if self.at_least else 'max'}_{self.name}"

    @property
    def shortage(self) -> str:
        """How many prompts there are and how many are needed; "" if there are enough, or nothing was measured."""
        if self.support is None or not self.needed:
            return ""
        got = f"{_counted(self.support.pairs, 'pair')} on {_counted(self.support.prompts, 'prompt')}"
        return f"{got} are too few to tell, about {self.needed:,} prompts are needed"

    def __str__(self) -> str:
        bound = "at least" if self.at_least else "at most"
        text = f"{METRICS[self.name]}: got {_shown(self.name, self.got)}, limit {bound} {_shown(self.name, self.limit)}"
        return f"{text}: {self.shortage}" if self.shortage else text


def support(examination: Mapping[str, Any]) -> dict[str, Support]:
    """The evidence behind each metric of an examination; metrics that are not based on a share are left out."""
    ranking = examination["ranking"]
    shares = dict.fromkeys(("accuracy", "accuracy_low", "ece", "over_length", "length_correlation"), ranking)
    shares["gold_accuracy_low"] = examination.get("gold")
    shares["against_length"] = examination.get("length_choices")
    shares["length_matched"] = examination.get("categories", {}).get("length", {}).get("matched lengths")
    shares |= {f"probe_{name}": share for name, share in examination.get("probes", {}).items()}
    return {name: _support(share) for name, share in shares.items() if share is not None}


def _support(share: Mapping[str, Any]) -> Support:
    low, high = share["accuracy_ci"]
    return Support(share["accuracy"], low, high, share["pairs"], share.get("prompts", share["pairs"]))


def needed(name: str, at_least: bool, limit: float, support: Support) -> int:
    """About how many prompts would settle on which side of its limit a metric is; 0 if there are enough.

    An interval entirely on one side of a limit on its share settles it. Otherwise the interval must be narrow: its
    longer side at most half of the distance to a perfect share, measured from the limit if the metric is the low end
    of an interval, else from chance. A model halfway up then passes, and a perfect one never fails for lack of pairs.
    The width shrinks with the square root of the number of prompts.
    """
    is_share = name in LOW_ENDS or name in ("accuracy", "length_matched") or name.startswith("probe_")
    if is_share and (
        support.low >= limit or support.high < limit if at_least else support.high <= limit or support.low > limit
    ):
        return 0
    room = (1 - (limit if name in LOW_ENDS else CHANCE)) / 2
    if room <= 0 or support.reach <= room:  # no interval's low end reaches 1, no matter how many prompts there are
        return 0
    return math.ceil(support.prompts * (support.reach / room) ** 2)


def verdicts(
    metrics: Mapping[str, float | None], refuse: Limits, warn: Limits, supports: Mapping[str, Support] | None = None
) -> list[Verdict]:
    """The verdict on each metric that has a limit: failed beyond a limit of `refuse`, a warning beyond one of `warn`,
    not measured if there are too few prompts (supports: see `support`; a metric without an entry has enough).

    Limits are named min_<metric> or max_<metric>; null means no limit. A metric in both has one verdict, the worse.
    Raises ValueError for a limit on an unknown metric.
    """
    results: dict[tuple[str, bool], Verdict] = {}
    for limits, beyond in ((warn, WARNED), (refuse, REFUSED)):
        for key, limit in limits.items():
            side, _, name = key.partition("_")
            if side not in ("min", "max") or name not in METRICS:
                names = ", ".join(METRICS)
                raise ValueError(f"gate: {key!r} is not a limit; expected min_ or max_ followed by one of: {names}")
            if limit is None:
                continue
            verdict = _verdict(name, metrics.get(name), side == "min", limit, beyond, (supports or {}).get(name))
            if verdict.verdict != PASSED or (name, verdict.at_least) not in results:
                results[name, verdict.at_least] = verdict
    order = list(METRICS)
    return sorted(results.values(), key=lambda verdict: (order.index(verdict.name), verdict.at_least))


def _verdict(
    name: str, got: float | None, at_least: bool, limit: float, beyond: str, support: Support | None
) -> Verdict:
    if got is None:
        return Verdict(name, got, at_least, limit, UNKNOWN)
    shortage = needed(name, at_least, limit, support) if support else 0
    passed = got >= limit if at_least else got <= limit
    return Verdict(name, got, at_least, limit, UNKNOWN if shortage else PASSED if passed else beyond, support, shortage)


def remedies(results: Sequence[Verdict]) -> list[str]:
    """What to do about the metrics beyond a limit, once for all that have the same remedy."""
    beyond = (REMEDIES[result.name] for result in results if result.verdict in (REFUSED, WARNED))
    return list(dict.fromkeys(beyond))


def refusal(path: str, examination: Mapping[str, Any], failed: Sequence[Verdict], commands: Mapping[str, str]) -> str:
    """Why RL refuses a reward model, and what to do about it (commands: {what: command})."""
    ranking = examination["ranking"]
    lines = [
        f"the reward model at {path} failed its examination "
        f"({ranking['pairs']:,} held-out pairs on {ranking['prompts']:,} prompts):"
    ]
    lines += [f"  {verdict}" for verdict in failed]
    return "\n".join([*lines, *(f"{what}: {command}" for what, command in commands.items())])


def show(examination: Mapping[str, Any], results: Sequence[Verdict], console: Console) -> None:
    """Prints an examination: metrics with their limits, the categories, and what to do about warnings."""
    ranking = examination["ranking"]
    caption = f"{ranking['pairs']:,} held-out pairs on {ranking['prompts']:,} prompts. [95% interval over prompts]"
    short = max(results, key=lambda verdict: verdict.needed, default=None)
    if short and short.shortage:
        caption += f"\nnot measured: {short.shortage}"
    table = Table(box=SIMPLE_HEAD, show_edge=False, caption_justify="left", caption_style="dim", caption=caption)
    for i, title in enumerate(("Examination", "value", "limit", "")):
        table.add_column(title, justify="right" if i in (1, 2) else "left", no_wrap=True)
    for name, value in examination["figures"].items():
        verdict = next((v for v in results if v.name == name and v.verdict != PASSED), None)
        verdict = verdict or next((v for v in results if v.name == name), None)
        cells = ["", ""]
        if verdict is not None:
            bound = "≥" if verdict.at_least else "≤"
            cells = [f"{bound} {_shown(name, verdict.limit)}", verdict.verdict]
        style = {REFUSED: "red", WARNED: "yellow"}.get(cells[1])
        table.add_row(METRICS[name], _value(examination, name, value), *cells, style=style)
    for grouping, shares in examination["categories"].items():
        table.add_section()
        for label, share in shares.items():
            value = with_interval(share["accuracy"], share["accuracy_ci"], percent).replace("[", "\\[")
            table.add_row(f"by {grouping}: {label}", value, f"{share['pairs']:,} pairs", "")
    console.print()
    console.print(table)
    for remedy in remedies(results):
        console.print(Padding(f"• {remedy}", (0, 0, 0, 2)), style="dim", highlight=False)


def _value(examination: Mapping[str, Any], name: str, value: float | None) -> str:
    ranking = examination["ranking"]
    intervals = {"accuracy": "accuracy_ci", "length_matched": "accuracy_length_matched_ci"}
    if ranking.get("longer_wins", 0.0) >= CHANCE:  # else over_length is relative to "the shorter answer wins"
        intervals["over_length"] = "over_longer_ci"
    interval = ranking.get(intervals.get(name, ""))
    if name.startswith("probe_"):
        interval = examination["probes"][name.removeprefix("probe_")]["accuracy_ci"]
    shown = with_interval(value, interval, percent) if interval else _shown(name, value)
    return shown.replace("[", "\\[")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _shown(name: str, value: float | None) -> str:
    """A share in percent, to one decimal: a metric just beyond its limit must not look equal to it."""
    if value is None or name not in SHARES:
        return number(value)
    return f"{100 * value:.1f}".removesuffix(".0").replace("-", "−") + "%"
