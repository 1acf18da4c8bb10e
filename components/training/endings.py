"""What a training came to, read off the history of its metrics (see rules) when it has ended."""

from math import isfinite, nan, sqrt
from statistics import fmean, stdev
from typing import Any

from components.training.health_rules import SMOOTH, History, Rule

LEARNED, FALLING, NO_BETTER, UNKNOWN = "learned", "still falling", "no better than before", "not measured"
STEEP = 0.25  # nats that as many steps again would take off the loss at its latest pace, from which on it still falls
SPAN = 0.1  # share of training over which that pace is measured, at least


def still_falling(history: History) -> str | None:
    """By validations where two of them are a SPAN apart, which share their records, and between which the loss fell as
    it did before; else by the last third of the losses of training, where the fall has to be above three standard
    errors."""
    points = list(zip(history.get("validated", []), history.get("val/loss", []), strict=False))
    end = points[-1][0] if points else 0.0
    if before := [point for point in points if point[0] <= (1 - SPAN) * end]:
        (step, then), now = before[-1], points[-1][1]
        at_first = [(0.0, value) for value in history.get("before", [])]
        earlier = [value for at, value in [*at_first, *points] if at <= 2 * step - end or at == 0.0][-1:]
        share = (end - step) / end
        if all(value > then for value in earlier) and (then - now) / share > STEEP:
            return f"val/loss went from {then:.3f} to {now:.3f} in the last {share:.0%} of training"
        return None
    trained = history.get("train/loss", [])
    half = len(trained) // 6
    if half < 3:
        return None
    first, last = trained[-2 * half : -half], trained[-half:]
    noise = 3 * sqrt((stdev(first) ** 2 + stdev(last) ** 2) / half)
    fall = fmean(first) - fmean(last)
    if fall > noise and fall / (half / len(trained)) > STEEP:
        return f"train/loss went from {fmean(first):.3f} to {fmean(last):.3f} in the last third of training"
    return None


def no_better(history: History) -> str | None:
    """The exported weights against those that the stage began from."""
    before, after = (history.get(name, [nan])[-1] for name in ("before", "after"))
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
    value = history.get(name, [nan])[-1]
    return value if isfinite(value) else None
