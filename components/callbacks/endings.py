"""What a training came to, read off the history of its metrics (see rules) when it has ended."""

from itertools import pairwise
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from components.callbacks.rules import SMOOTH, History, Rule

LEARNED, FALLING, NO_BETTER, UNKNOWN = "learned", "still falling", "no better than before", "not measured"
STEEP = 0.2  # share of the loss that goes within as many steps again, at the latest pace, from which on it still falls


def still_falling(history: History) -> str | None:
    """By validations where there are two or more, which share their records; else by the last third of the losses of
    training, where the fall has to be above three standard errors."""
    losses, steps = history.get("val/loss", []), history.get("validated", [])
    if len(losses) > 1 and len(steps) == len(losses):
        known = [*history.get("before", []), *losses][-3:]
        if not all(a > b for a, b in pairwise(known)):
            return None
        (before, now), (start, end) = losses[-2:], steps[-2:]
        if not _is_steep(before, now, (end - start) / end if end else 0.0):
            return None
        return f"val/loss went from {before:.3f} to {now:.3f} in the last {(end - start) / end:.0%} of training"
    trained = history.get("train/loss", [])
    half = len(trained) // 6
    if half < 3:
        return None
    first, last = trained[-2 * half : -half], trained[-half:]
    noise = 3 * sqrt((stdev(first) ** 2 + stdev(last) ** 2) / half)
    before, now = fmean(first), fmean(last)
    if before - now > noise and _is_steep(before, now, half / len(trained)):
        return f"train/loss went from {before:.3f} to {now:.3f} in the last third of training"
    return None


def _is_steep(before: float, now: float, share: float) -> bool:
    """Whether a loss fell so fast over a share of the training; in comparisons with NaN it did not."""
    return share > 0 and before > 0 and (before - now) / before > STEEP * share


def no_better(history: History) -> str | None:
    """The exported weights against those that the stage began from."""
    before, after = (history.get(name, [float("nan")])[-1] for name in ("before", "after"))
    if after >= before:
        return f"val/loss was {before:.3f} before the first step, and is {after:.3f} now, of the same held-out records"
    return None


ENDINGS = {
    NO_BETTER: Rule(
        no_better,
        "steps too large, or records so few or so different from the held-out ones that they teach nothing of them.",
        "Lower stage.optimizer.lr, or use more data; look at the records and at data/truncated in card.json.",
    ),
    FALLING: Rule(
        still_falling,
        "training ended before the model had learned what these records can teach.",
        "Train longer.",
    ),
}


def verdict(history: History) -> dict[str, Any]:
    """For the card: `verdict`, one of the words above; `metric` with its values `before` the first step and `after`
    training, None where it was not measured; `found`, what the ending that was found says, or "".

    Of RL the metric is rollout/score, its first rollouts against its last; of other training val/loss.
    """
    metric, before, after = "val/loss", _latest(history, "before"), _latest(history, "after")
    scores = history.get("rollout/score", [])
    if few := min(SMOOTH, len(scores) // 2):
        metric, before, after = "rollout/score", fmean(scores[:few]), fmean(scores[-few:])
    known = {"metric": metric, "before": before, "after": after}
    for name, rule in ENDINGS.items():
        if text := rule.look(history):
            return {"verdict": name, **known, "found": text}
    if before is None or after is None:
        return {"verdict": UNKNOWN, **known, "found": ""}
    rose = after > before
    return {"verdict": LEARNED if rose == (metric == "rollout/score") else NO_BETTER, **known, "found": ""}


def _latest(history: History, name: str) -> float | None:
    return history[name][-1] if history.get(name) else None
