"""What to conclude from each picture of the report, in a sentence or two derived from the metrics alone."""

from collections.abc import Callable, Mapping
from typing import Any

from components.evaluation.report import outcome
from components.evaluation.report.card import chatting, number, percent, quality_key, with_interval
from components.evaluation.report.curves import Curve

Results = dict[str, Any]
Curves = Mapping[str, Mapping[str, Curve]]
WINDOW = 5  # rollouts averaged at the start and at the end
SURE = 0.02  # a smaller mean gap between confidence and accuracy counts as none
ROLLOUTS = {"rollout/score": "score", "rollout/gold": "gold score", "rollout/kl": "KL", "rollout/entropy": "entropy"}


def quality(results: Results, curves: Curves) -> list[str]:
    """Which model leads, which ones won, and whether that carries over to prompts that were not trained on."""
    key = quality_key(results["models"])
    name, metrics = max(results["models"].items(), key=lambda item: item[1][key])
    sentences = [outcome.leader(results), *outcome.winners(results)]
    if metrics.get(f"{key}_train") is not None:
        gap = metrics[f"{key}_train"] - metrics[key]
        more = "more than" if gap > 0 else "less than"
        compared = f"{number(abs(gap))} {more}" if abs(gap) >= outcome.LEAST else "the same as"
        reached = number(metrics[f"{key}_train"])
        sentences.append(f"On training prompts {name} reaches {reached}, {compared} on held-out ones.")
    return sentences


def best_of_n(results: Results, curves: Curves) -> list[str]:
    """How far best-of-n improves, where it turns, and how training compares at the same KL."""
    curve = results["best_of_n"]
    key = "gold" if "gold" in curve else "score"
    word = "gold score" if key == "gold" else "reward model's score"
    counts, values = curve["n"], curve[key]
    top = max(range(len(values)), key=values.__getitem__)
    if top == 0:
        sentences = [
            f"Choosing by the reward model does not raise the {word}: it is highest at n = 1, without choosing."
        ]
    else:
        sentences = [
            f"Choosing by the reward model raises the {word} from {number(values[0])} at n = 1 to "
            f"{number(values[top])} at n = {counts[top]}."
        ]
    if top < len(values) - 1:
        ends = (curve.get(f"{key}_ci") or [None] * len(values))[top]
        real = ends is not None and values[-1] < ends[0]
        sentences.append(
            f"Beyond that it falls to {number(values[-1])} while the reward model's score rises from "
            f"{number(curve['score'][top])} to {number(curve['score'][-1])}: "
            + ("choosing exploits the reward model's mistakes." if real else "the drop is within the interval.")
        )
    return sentences + [_against_choosing(name, metrics, curve, key) for name, metrics in _moved(results, key)]


def _moved(results: Results, key: str) -> list[tuple[str, Results]]:
    return [(n, f) for n, f in chatting(results).items() if (f.get("kl") or 0) > 0 and f.get(key) is not None]


def _against_choosing(name: str, metrics: Results, curve: Results, key: str) -> str:
    kl, reached = metrics["kl"], metrics[key]
    if kl > curve["kl"][-1]:
        most = max(curve[key])
        side = "above" if reached > most else "not above"
        return (
            f"{name} moved further from sft than any n here (KL {number(kl)}) and reaches {number(reached)}, "
            f"{side} the best of them."
        )
    high = next(i for i, at in enumerate(curve["kl"]) if at >= kl)
    low = max(high - 1, 0)
    share = 0.0 if high == low else (kl - curve["kl"][low]) / (curve["kl"][high] - curve["kl"][low])
    chosen = curve[key][low] + share * (curve[key][high] - curve[key][low])
    verdict = "better than choosing" if reached > chosen else "no better than choosing"
    at = f"At the KL of {name} ({number(kl)})"
    return f"{at}, choosing reaches about {number(chosen)} and {name} {number(reached)}: {verdict}."


def majority(results: Results, curves: Curves) -> list[str]:
    """Whether voting helps, and how it compares with the reward model's favorite and with single answers."""
    curve, best = results["majority"], results.get("best_of_n") or {}
    most, last = curve["k"][-1], curve["correct"][-1]
    share = with_interval(last, curve["correct_ci"][-1], percent)
    if curve["correct_ci"][-1][0] > curve["correct"][0]:
        verdict = "voting helps"
    elif curve["correct_ci"][-1][1] < curve["correct"][0]:
        verdict = "voting hurts"
    else:
        verdict = "no clear gain from voting"
    single = percent(curve["correct"][0])
    sentences = [f"A vote of {most} answers is correct {share} of the time, a single one {single}: {verdict}."]
    counts = [n for n in best.get("n", ()) if n <= most] if "correct" in best else []
    if counts:
        favorite = best["correct"][best["n"].index(counts[-1])]
        sentences.append(
            f"The reward model's favorite of {counts[-1]} is correct {percent(favorite)} of the time, "
            f"{_often(favorite, last)} the vote."
        )
    for name, metrics in chatting(results).items():
        if name != "sft" and metrics.get("correct") is not None:
            often = _often(metrics["correct"], last)
            sentences.append(
                f"A single answer of {name} is correct {percent(metrics['correct'])} of the time, {often} sft's vote."
            )
    return sentences


def _often(share: float, other: float) -> str:
    if abs(share - other) < outcome.LEAST:
        return "about as often as"
    return "more often than" if share > other else "less often than"


def choice(results: Results, curves: Curves) -> list[str]:
    """Whether the reward model knows the truth, and whether it knows more than the models answer."""
    chosen = results["choice"]
    low, high = chosen["reward_model_ci"]
    share = with_interval(chosen["reward_model"], chosen["reward_model_ci"], percent)
    knows = (
        "above chance"
        if low > chosen["chance"]
        else "below chance"
        if high < chosen["chance"]
        else "not distinguishable from chance"
    )
    sentences = [
        f"On held-out questions the reward model picks the true statement {share} of the time, "
        f"{knows} ({percent(chosen['chance'])})."
    ]
    if "reward_model_train" in chosen:
        sentences.append(f"On training questions it picks it {percent(chosen['reward_model_train'])}.")
    said = {name: metrics["greedy_correct"] for name, metrics in chatting(results).items()}
    above = [f"{name} ({percent(share)})" for name, share in said.items() if share > high]
    if above:
        sentences.append(
            f"It knows less than {' and '.join(above)} can answer, so it cannot teach them the facts here."
        )
    return sentences


def reward_model(results: Results, curves: Curves) -> list[str]:
    """How accurate it is on new prompts, how much lower that is than in training, and whether it is overconfident."""
    metrics = results["reward_model"]
    ending = "_heldout" if "accuracy_heldout" in metrics else ""
    where = "held-out" if ending else "training"
    low, high = metrics[f"accuracy_ci{ending}"]
    share = with_interval(metrics[f"accuracy{ending}"], [low, high], percent)
    verdict = "better than" if low > 0.5 else "worse than" if high < 0.5 else "not distinguishable from"
    sentences = [f"It ranks {share} of the pairs on {where} prompts correctly: {verdict} chance."]
    if ending and "accuracy" in metrics:
        lost = metrics["accuracy"] - metrics["accuracy_heldout"]
        if lost >= outcome.LEAST:
            sentences.append(f"That is {_points(lost)} lower than on training prompts, {percent(metrics['accuracy'])}.")
        else:
            sentences.append(f"That is no lower than on training prompts, {percent(metrics['accuracy'])}.")
    bins = [b for b in metrics[f"reliability{ending}"] if b["pairs"]]
    total = sum(b["pairs"] for b in bins)
    gap = sum(b["pairs"] * (b["confidence"] - b["accuracy"]) for b in bins) / total
    sure = "well calibrated" if abs(gap) < SURE else "overconfident" if gap > 0 else "underconfident"
    sentences.append(
        f"It is {sure}: its mean confidence is {_points(abs(gap))} {'above' if gap > 0 else 'below'} its accuracy."
    )
    return sentences


def _points(share: float) -> str:
    return f"{100 * share:.0f} points"


def learning(results: Results, curves: Curves) -> list[str]:
    """What changed during RL, and where the validation losses ended."""
    sentences = []
    for stage, by_tag in curves.items():
        measured = {word: by_tag[tag].values for tag, word in ROLLOUTS.items() if tag in by_tag}
        moved = {word: _ends(values) for word, values in measured.items() if len(values) > 1}
        if moved:
            listed = ", ".join(f"{word} {number(a)} → {number(b)}" for word, (a, b) in moved.items())
            sentences.append(f"Over {stage}'s rollouts: {listed}.")
            sentences += _exploited(stage, moved)
        elif "val/loss" in by_tag:
            sentences.append(_loss(stage, by_tag["val/loss"]))
    return sentences or ["No metric was measured twice, so there is no trend to report."]


def _ends(values: list[float]) -> tuple[float, float]:
    """Means of the first few and of the last few of two or more values: WINDOW of them, or half if there are fewer."""
    few = min(WINDOW, len(values) // 2)
    return sum(values[:few]) / few, sum(values[-few:]) / few


def _exploited(stage: str, moved: Mapping[str, tuple[float, float]]) -> list[str]:
    if "score" not in moved or "gold score" not in moved:
        return []
    rise, truly = (after - before for before, after in (moved["score"], moved["gold score"]))
    if rise < outcome.LEAST:
        return ["The score did not rise, so the policy has not learned what the reward model likes."]
    if truly <= -outcome.LEAST:
        return [f"The score rose while the gold score fell: {stage} exploits the reward model's mistakes."]
    if truly >= outcome.LEAST:
        return ["Both scores rose: what the reward model likes more is truly better."]
    return ["The score rose but the gold score did not: what the reward model likes more is no better."]


def _loss(stage: str, curve: Curve) -> str:
    first, last = curve.values[0], curve.values[-1]
    if len(curve.values) == 1:
        return f"The validation loss of {stage} was measured once, {number(first)}: no curve yet."
    best = min(range(len(curve.values)), key=curve.values.__getitem__)
    lowest = curve.values[best]
    sentence = f"The validation loss of {stage} went from {number(first)} to {number(last)}"
    if last - lowest >= outcome.LEAST:
        return (
            f"{sentence}; it was lowest at step {curve.steps[best]:,} ({number(lowest)}), and later steps only overfit."
        )
    still = curve.values[-2] - last >= outcome.LEAST
    return f"{sentence} and was still falling: more steps would help." if still else f"{sentence}."


def minutes(results: Results, curves: Curves) -> list[str]:
    """Where the time went."""
    spent = results["minutes"]
    total = sum(spent.values())
    stage = max(spent, key=spent.__getitem__)
    share = f" ({percent(spent[stage] / total)})" if total else ""
    return [f"{stage} took the most time: {spent[stage]:.1f} of {total:.1f} minutes{share}."]


CONCLUSIONS: dict[str, Callable[[Results, Curves], list[str]]] = {
    "quality": quality,
    "best_of_n": best_of_n,
    "majority": majority,
    "choice": choice,
    "reward_model": reward_model,
    "curves": learning,
    "minutes": minutes,
}
