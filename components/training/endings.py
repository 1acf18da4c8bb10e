"""The verdict on a finished training run, from the history of its metrics (see health_rules)."""

from math import isfinite, sqrt
from statistics import fmean, stdev
from typing import Any

from components.training.health_rules import SMOOTH, History, Rule, latest

LEARNED, FALLING, NO_BETTER, UNKNOWN = "learned", "still falling", "no better than before", "not measured"
STEEP = 0.25  # nats; a loss still falls if, at its latest rate, training twice as long would lower it by more
LOSS, RANKING, SCORE = "val/loss", "val/accuracy", "rollout/score"
OF_ROLLOUTS = (SCORE, "rollout/reverse_kl")
SPAN = 0.1  # the smallest share of training over which that rate is measured


def still_falling(history: History) -> str | None:
    """The evidence that the loss was still falling when training ended; None without any.

    Judged by validations, which share their records, if two are a SPAN apart: the loss must have fallen before the
    first and between the two. Otherwise judged by the last third of the training losses, where the fall must exceed
    three standard errors.
    """
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
    """The evidence that the exported weights are no better than those that the stage started from; None without any.

    Judged by val/loss; a reward model by the pairs it ranks correctly, which must be more by two standard errors.
    """
    metric, before, after = _compared(history)
    if after >= before if metric == LOSS else after - before <= 2 * latest(history, "after/accuracy_stderr"):
        return f"{metric} was {before:.3f} before the first step and is {after:.3f} now, on the same held-out records"
    return None


def overconfident(history: History) -> str:
    """What it means if a reward model ranks better at a higher loss; "" otherwise."""
    before, after = latest(history, "before"), latest(history, "after")
    if _compared(history)[0] != RANKING or not after > before:
        return ""
    return (
        f"val/loss rose from {before:.3f} to {after:.3f} although more pairs are ranked correctly: it also counts how "
        "certain a choice is, and the model is more certain where it is wrong than before (see its calibration error)"
    )


def _compared(history: History) -> tuple[str, float, float]:
    """The metric by which training is judged, before the first step and after the last; NaN if not measured."""
    if "before/accuracy" in history and "after/accuracy_stderr" in history:
        return RANKING, latest(history, "before/accuracy"), latest(history, "after/accuracy")
    return LOSS, latest(history, "before"), latest(history, "after")


ENDINGS = {
    NO_BETTER: Rule(
        no_better,
        "steps too large, or training records too few or too different from the held-out ones to help on them.",
        "Lower stage.optimizer.lr, or use more data; look at the records and at data/truncated in card.json.",
    ),
    FALLING: Rule(
        still_falling,
        "training ended before the model had learned what these records can teach.",
        "Train longer.",
    ),
}


def verdict(history: History) -> dict[str, Any]:
    """For the card: `verdict`, one of the constants above; `metric` with its values `before` the first step and `after`
    training, None if not measured; `found`, the message of the ending that applies, or of `overconfident`, or "".

    The metric of RL is rollout/score and that of distillation rollout/reverse_kl, on the first and the last rollouts;
    of a reward model val/accuracy, of other training val/loss.
    """
    metric, before, after = _compared(history)
    for name in OF_ROLLOUTS:
        values = history.get(name, [])
        if few := min(SMOOTH, len(values) // 2):
            metric, before, after = name, fmean(values[:few]), fmean(values[-few:])
    measured = {"metric": metric, "before": _finite(before), "after": _finite(after)}
    for name, rule in ENDINGS.items():
        if text := rule.check(history):
            return {"verdict": name, **measured, "found": text}
    if None in measured.values():
        return {"verdict": UNKNOWN, **measured, "found": ""}
    better = after > before if metric in (SCORE, RANKING) else after < before
    return {"verdict": LEARNED if better else NO_BETTER, **measured, "found": overconfident(history)}


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
